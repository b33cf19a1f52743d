//! Reading manifests.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ringfence_analyze::{PlacementOptions, add_endpoint_slices, place};
use ringfence_k8s::{Manifests, Severity, Source, parse};
use ringfence_model::{ExternalHost, Masquerade, Object, PodNetwork, Topology};

use crate::args::{Input, MasqueradeName, Network, TopologyName};
use crate::output::{Failure, Messages};

/// A cluster that was read, in which every pod has its node and its addresses.
pub(crate) struct Cluster {
    pub(crate) objects: Vec<Object>,
    pub(crate) externals: Vec<ExternalHost>,
    /// The network that the lab shall play, as far as the input or the flags say.
    pub(crate) topology: Topology,
    /// Some object is invalid. It fails closed; the answer is still one about the rest.
    pub(crate) has_errors: bool,
}

/// Reads, reports what is wrong on standard error, and places the pods: on the nodes of the input, or with `network` on as
/// many as it or the input's Topology says.
pub(crate) fn read(input: &Input, network: Option<&Network>, messages: &Messages) -> Result<Cluster, Failure> {
    let mut files = Files::default();
    for path in &input.paths {
        read_path(path, &mut files)?;
    }
    let topology_file = match network.and_then(|network| network.topology.as_ref()) {
        Some(TopologyName::File(path)) => Some(path),
        Some(TopologyName::Network(_)) | None => None,
    };
    if let Some(path) = topology_file {
        read_path(path, &mut files)?;
    }
    let sources: Vec<Source<'_>> = files.texts.iter().map(|(name, text)| Source { name, text }).collect();
    let Manifests { mut objects, externals, topology, diagnostics, .. } = parse(&sources);
    let mut worst = None;
    for diagnostic in &diagnostics {
        messages.diagnostic(diagnostic);
        worst = worst.max(Some(diagnostic.severity));
    }
    if worst == Some(Severity::Fatal) {
        return Err(Failure::Unreadable);
    }
    if let Some(path) = topology_file.filter(|_| topology.is_none()) {
        return Err(Failure::NoTopology(path.clone()));
    }
    let topology = network.map_or_else(Topology::default, |network| network.over(topology.unwrap_or_default()));
    let options = PlacementOptions {
        pod_cidrs: input.pod_cidr.clone(),
        nodes: topology.nodes,
        tunnels: topology.pod_network == Some(PodNetwork::Vxlan),
    };
    for note in place(&mut objects, &externals, &options)?.notes {
        messages.note(&note);
    }
    add_endpoint_slices(&mut objects);
    if !objects.iter().any(|object| matches!(object, Object::Pod(_))) {
        return Err(Failure::NoPods);
    }
    Ok(Cluster { objects, externals, topology, has_errors: worst == Some(Severity::Error) })
}

/// The other clusters that the flags name, read and placed each by itself, on the nodes that it has. Their hosts outside and
/// their Topology are left out: these are the first one's. An invalid object of theirs fails closed and is reported.
pub(crate) fn others(
    input: &Input,
    network: &Network,
    topology: Topology,
    messages: &Messages,
) -> Result<Vec<Vec<Object>>, Failure> {
    let read_one = |path: &PathBuf| {
        let input = Input { paths: vec![path.clone()], pod_cidr: input.pod_cidr.clone() };
        let topology = match topology.pod_network {
            Some(PodNetwork::Vxlan) => Some(TopologyName::Network(PodNetwork::Vxlan)),
            Some(PodNetwork::Routed | PodNetwork::Bridge) | None => None,
        };
        let network =
            Network { nodes: None, topology, masquerade: None, masquerade_all: false, other_cluster: Vec::new() };
        read(&input, Some(&network), messages).map(|cluster| cluster.objects)
    };
    network.other_cluster.iter().map(read_one).collect()
}

impl Network {
    /// The flags, and where they are silent what the input says.
    fn over(&self, input: Topology) -> Topology {
        let pod_network = match self.topology {
            Some(TopologyName::Network(network)) => Some(network),
            Some(TopologyName::File(_)) | None => None,
        };
        let masquerade = self.masquerade.map(|name| match name {
            MasqueradeName::None => Masquerade::None,
            MasqueradeName::Outside => Masquerade::Outside,
            MasqueradeName::Pods => Masquerade::PodsToo,
        });
        Topology {
            nodes: self.nodes.map(usize::from).or(input.nodes),
            pod_network: pod_network.or(input.pod_network),
            masquerade: masquerade.or(input.masquerade),
            masquerade_all: self.masquerade_all.then_some(true).or(input.masquerade_all),
        }
    }
}

/// The files read so far.
#[derive(Default)]
struct Files {
    texts: Vec<(String, Vec<u8>)>,
    known: BTreeSet<PathBuf>,
}

fn read_path(path: &Path, files: &mut Files) -> Result<(), Failure> {
    if path == Path::new("-") {
        files.texts.push(("<stdin>".to_owned(), read_limited(io::stdin().lock(), Path::new("<stdin>"))?));
        return Ok(());
    }
    let unreadable = |path: &Path, source: io::Error| Failure::Read { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(|source| unreadable(path, source))?;
    if !metadata.is_dir() {
        return read_file(path, files);
    }
    let mut found = false;
    for entry in walkdir::WalkDir::new(path).sort_by_file_name() {
        let entry = entry.map_err(|error| {
            let at = error.path().unwrap_or(path).to_owned();
            unreadable(&at, error.into())
        })?;
        // A link to a file counts as the file; one to a directory is not followed, so links cannot make a circle.
        if entry.path().is_file() && is_manifest(entry.path()) {
            found = true;
            read_file(entry.path(), files)?;
        }
    }
    if !found {
        return Err(Failure::NoManifests(path.to_owned()));
    }
    Ok(())
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
}

fn read_file(path: &Path, files: &mut Files) -> Result<(), Failure> {
    let unreadable = |source| Failure::Read { path: path.to_owned(), source };
    // A file that several paths lead to is read once.
    let identity = path.canonicalize().map_err(unreadable)?;
    if files.known.insert(identity) {
        let text = read_limited(File::open(path).map_err(unreadable)?, path)?;
        files.texts.push((path.display().to_string(), text));
    }
    Ok(())
}

/// Reads no more than one byte past the parser's limit: enough for it to see that there is too much.
fn read_limited(source: impl Read, path: &Path) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    let limit = ringfence_k8s::MAX_BYTES as u64 + 1;
    source.take(limit).read_to_end(&mut text).map_err(|source| Failure::Read { path: path.to_owned(), source })?;
    Ok(text)
}
