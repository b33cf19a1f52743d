//! Reading manifests.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ringfence_analyze::{PlacementOptions, place};
use ringfence_k8s::{Manifests, Severity, Source, parse};
use ringfence_model::{ExternalHost, Object};

use crate::args::Input;
use crate::output::{Failure, Messages};

/// A cluster that was read, in which every pod has its node and its addresses.
pub(crate) struct Cluster {
    pub(crate) objects: Vec<Object>,
    pub(crate) externals: Vec<ExternalHost>,
    /// Some object is invalid. It fails closed; the answer is still one about the rest.
    pub(crate) has_errors: bool,
}

/// Reads, reports what is wrong on standard error, and places the pods.
pub(crate) fn read(input: &Input, messages: &Messages) -> Result<Cluster, Failure> {
    let mut files = Files::default();
    for path in &input.paths {
        read_path(path, &mut files)?;
    }
    let sources: Vec<Source<'_>> = files.texts.iter().map(|(name, text)| Source { name, text }).collect();
    let Manifests { mut objects, externals, diagnostics, .. } = parse(&sources);
    let mut worst = None;
    for diagnostic in &diagnostics {
        messages.diagnostic(diagnostic);
        worst = worst.max(Some(diagnostic.severity));
    }
    if worst == Some(Severity::Fatal) {
        return Err(Failure::Unreadable);
    }
    let options = PlacementOptions { pod_cidrs: input.pod_cidr.clone(), single_node: false };
    for note in place(&mut objects, &externals, &options)?.notes {
        messages.note(&note);
    }
    if !objects.iter().any(|object| matches!(object, Object::Pod(_))) {
        return Err(Failure::NoPods);
    }
    Ok(Cluster { objects, externals, has_errors: worst == Some(Severity::Error) })
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
