//! Announced sandboxes as files, one for each, below the run directory.
//!
//! The CNI plugin writes the file before it asks the agent and removes it when the sandbox goes. So an agent that is
//! started again, or was away, knows the addresses of pods whose status does not tell them yet.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::Sandbox;

/// The directory's name below the run directory.
const DIRECTORY: &str = "sandboxes";
/// An id is a file name: letters, digits and `_.-`, and no longer than this.
const LONGEST_ID: usize = 200;

/// What a file holds.
#[derive(Serialize)]
struct Announcement<'a> {
    #[serde(flatten)]
    sandbox: &'a Sandbox,
    /// The CNI network that the sandbox is attached to, for those who collect what it left behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    network: Option<&'a str>,
}

/// Writes, or replaces, the file of a sandbox. It is there as a whole or not at all.
///
/// # Errors
/// The id is no [valid](is_valid_id) one, or the file system refuses.
pub fn write(run_directory: &Path, sandbox: &Sandbox) -> io::Result<()> {
    write_file(run_directory, &Announcement { sandbox, network: None })
}

/// As [`write()`], with the name of the CNI network, so that [`ids_of_network`] finds it.
///
/// # Errors
/// As [`write()`].
pub fn write_of_network(run_directory: &Path, sandbox: &Sandbox, network: &str) -> io::Result<()> {
    write_file(run_directory, &Announcement { sandbox, network: Some(network) })
}

fn write_file(run_directory: &Path, announcement: &Announcement<'_>) -> io::Result<()> {
    let sandbox = announcement.sandbox;
    let path = path(run_directory, &sandbox.id)?;
    let directory = run_directory.join(DIRECTORY);
    crate::make_run_directory(&directory)?;
    let text = serde_json::to_vec(announcement)?;
    let temporary = directory.join(format!(".{}.{}", sandbox.id, std::process::id()));
    let written = fs::File::create(&temporary).and_then(|mut file| file.write_all(&text));
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

/// Removes the file of a sandbox. One that is not there is no error.
///
/// # Errors
/// The id is no [valid](is_valid_id) one, or the file system refuses.
pub fn remove(run_directory: &Path, id: &str) -> io::Result<()> {
    match fs::remove_file(path(run_directory, id)?) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What [`read_all`] found, sorted by file name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// The sandboxes.
    pub sandboxes: Vec<Sandbox>,
    /// Files that cannot be read, each with the reason.
    pub unreadable: Vec<(PathBuf, String)>,
}

/// All sandboxes that are announced.
///
/// # Errors
/// The directory exists and cannot be listed.
pub fn read_all(run_directory: &Path) -> io::Result<Announced> {
    let mut announced = Announced::default();
    for path in files(run_directory)? {
        match read(&path) {
            Ok(sandbox) => announced.sandboxes.push(sandbox),
            Err(reason) => announced.unreadable.push((path, reason)),
        }
    }
    Ok(announced)
}

/// The ids of all sandboxes that were announced with this network, sorted. Files that cannot be read are passed over.
///
/// # Errors
/// The directory exists and cannot be listed.
pub fn ids_of_network(run_directory: &Path, network: &str) -> io::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct OfNetwork {
        id: String,
        network: Option<String>,
    }

    let mut ids = Vec::new();
    for path in files(run_directory)? {
        let Ok(text) = fs::read(path) else { continue };
        match serde_json::from_slice::<OfNetwork>(&text) {
            Ok(file) if file.network.as_deref() == Some(network) => ids.push(file.id),
            _ => {}
        }
    }
    Ok(ids)
}

/// The files of all announcements, sorted.
fn files(run_directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(run_directory.join(DIRECTORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        // Those that begin with a dot are being written.
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Reads a file that must say what its name says.
fn read(path: &Path) -> Result<Sandbox, String> {
    let text = fs::read(path).map_err(|error| error.to_string())?;
    let sandbox: Sandbox = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    sandbox.check().map_err(|error| error.to_string())?;
    match path.file_stem().is_some_and(|stem| *stem == *sandbox.id) {
        true => Ok(sandbox),
        false => Err(format!("it is about {:?}", sandbox.id)),
    }
}

/// When the file of a sandbox was written.
///
/// # Errors
/// The id is no [valid](is_valid_id) one, or there is no such file.
pub fn written_at(run_directory: &Path, id: &str) -> io::Result<SystemTime> {
    fs::metadata(path(run_directory, id)?)?.modified()
}

/// Whether an id can name a file: letters, digits and `_.-`, beginning with a letter or digit.
pub fn is_valid_id(id: &str) -> bool {
    id.len() <= LONGEST_ID
        && id.starts_with(|c: char| c.is_ascii_alphanumeric())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn path(run_directory: &Path, id: &str) -> io::Result<PathBuf> {
    if !is_valid_id(id) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{id:?} is not the id of a sandbox")));
    }
    Ok(run_directory.join(DIRECTORY).join(format!("{id}.json")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str) -> Sandbox {
        Sandbox {
            id: id.to_owned(),
            namespace: "shop".to_owned(),
            name: "web".to_owned(),
            uid: None,
            addresses: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    #[test]
    fn written_read_removed() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(read_all(run.path()).unwrap(), Announced::default());
        let (a, mut b) = (sandbox("a"), sandbox("b.0"));
        write(run.path(), &b).unwrap();
        write(run.path(), &a).unwrap();
        b.uid = Some("u".to_owned());
        write(run.path(), &b).unwrap();
        fs::write(run.path().join(DIRECTORY).join("c.json"), "{").unwrap();
        fs::copy(run.path().join(DIRECTORY).join("a.json"), run.path().join(DIRECTORY).join("e.json")).unwrap();
        fs::write(run.path().join(DIRECTORY).join(".d.1"), "").unwrap();
        let announced = read_all(run.path()).unwrap();
        assert_eq!(announced.sandboxes, [a, b]);
        let reasons: Vec<&str> = announced.unreadable.iter().map(|(_, reason)| reason.as_str()).collect();
        assert!(matches!(reasons.as_slice(), [_, "it is about \"a\""]), "{reasons:?}");
        assert!(written_at(run.path(), "a").unwrap() <= SystemTime::now());
        assert!(written_at(run.path(), "c").is_ok() && written_at(run.path(), "d").is_err());
        remove(run.path(), "a").unwrap();
        remove(run.path(), "a").unwrap();
        assert_eq!(read_all(run.path()).unwrap().sandboxes.len(), 1);
    }

    #[test]
    fn each_network_has_its_own() {
        let run = tempfile::tempdir().unwrap();
        assert_eq!(ids_of_network(run.path(), "cbr0").unwrap(), [""; 0]);
        write_of_network(run.path(), &sandbox("b"), "cbr0").unwrap();
        write_of_network(run.path(), &sandbox("a"), "cbr0").unwrap();
        write_of_network(run.path(), &sandbox("c"), "storage").unwrap();
        write(run.path(), &sandbox("d")).unwrap();
        assert_eq!(ids_of_network(run.path(), "cbr0").unwrap(), ["a", "b"]);
        assert_eq!(read_all(run.path()).unwrap().sandboxes.len(), 4);
    }

    #[test]
    fn what_cannot_be_a_sandbox() {
        use crate::InvalidSandbox;
        let with = |change: fn(&mut Sandbox)| {
            let mut sandbox = sandbox("a");
            change(&mut sandbox);
            sandbox.check()
        };
        assert_eq!(with(|_| {}), Ok(()));
        assert_eq!(with(|sandbox| sandbox.id = "../a".to_owned()), Err(InvalidSandbox::Id("../a".to_owned())));
        assert_eq!(with(|sandbox| sandbox.name.clear()), Err(InvalidSandbox::NoPod));
        assert_eq!(with(|sandbox| sandbox.addresses.clear()), Err(InvalidSandbox::Addresses(0)));
        for address in ["0.0.0.0", "127.0.0.1", "::1", "::", "224.0.0.1", "ff02::1"] {
            let mut sandbox = sandbox("a");
            sandbox.addresses.push(address.parse().unwrap());
            assert!(matches!(sandbox.check(), Err(InvalidSandbox::Address(_))), "{address}");
        }
    }

    #[test]
    fn an_id_does_not_leave_the_directory() {
        let run = tempfile::tempdir().unwrap();
        for id in ["", "../x", "a/b", ".hidden", "a\0", &"a".repeat(300)] {
            assert!(write(run.path(), &sandbox(id)).is_err(), "{id}");
            assert!(remove(run.path(), id).is_err(), "{id}");
        }
    }
}
