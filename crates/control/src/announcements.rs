//! Announced sandboxes as files, one for each, below the run directory.
//!
//! The CNI plugin writes the file before it asks the agent and removes it when the sandbox goes. So an agent that is
//! started again, or was away, knows the addresses of pods whose status does not tell them yet.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::Sandbox;

/// The directory's name below the run directory.
const DIRECTORY: &str = "sandboxes";
/// An id is a file name: letters, digits and `_.-`, and no longer than this.
const LONGEST_ID: usize = 200;

/// Writes, or replaces, the file of a sandbox. It is there as a whole or not at all.
///
/// # Errors
/// The id is no [valid](is_valid_id) one, or the file system refuses.
pub fn write(run_directory: &Path, sandbox: &Sandbox) -> io::Result<()> {
    let path = path(run_directory, &sandbox.id)?;
    let directory = run_directory.join(DIRECTORY);
    fs::create_dir_all(&directory)?;
    let text = serde_json::to_vec(sandbox)?;
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
    let entries = match fs::read_dir(run_directory.join(DIRECTORY)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Announced::default()),
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
    let mut announced = Announced::default();
    for path in paths {
        let read = fs::read(&path).map_err(|error| error.to_string());
        match read.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string())) {
            Ok(sandbox) => announced.sandboxes.push(sandbox),
            Err(reason) => announced.unreadable.push((path, reason)),
        }
    }
    Ok(announced)
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
        fs::write(run.path().join(DIRECTORY).join(".d.1"), "").unwrap();
        let announced = read_all(run.path()).unwrap();
        assert_eq!(announced.sandboxes, [a, b]);
        assert_eq!(announced.unreadable.len(), 1);
        remove(run.path(), "a").unwrap();
        remove(run.path(), "a").unwrap();
        assert_eq!(read_all(run.path()).unwrap().sandboxes.len(), 1);
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
