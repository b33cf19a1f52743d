//! Files that others read at any moment: replaced as a whole, with the owner and mode they had.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

/// The files of a directory that container runtimes take for network configurations, in the order in which they prefer them.
pub(crate) fn configurations(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        // As libcni does: what follows the last dot, wherever that is, and links count whatever they lead to.
        let name = name.as_encoded_bytes();
        let known = [b".conf".as_slice(), b".conflist", b".json"].iter().any(|ending| name.ends_with(ending));
        if known && !entry.file_type()?.is_dir() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Takes the lock that keeps two of us from writing into a directory at the same time, until the file is dropped.
pub(crate) fn lock(directory: &Path) -> io::Result<File> {
    let file = File::open(directory)?;
    file.lock()?;
    Ok(file)
}

/// Replaces a file, or the one that a link leads to, or makes it as `like` is.
pub(crate) fn replace(path: &Path, content: &[u8], like: &Metadata) -> io::Result<()> {
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        resolved => resolved?,
    };
    put(&path, content, |file| {
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
            fchown(file, Some(like.uid()), Some(like.gid()))?;
        }
        // After the owner, because changing that clears bits of the mode.
        file.set_permissions(Permissions::from_mode(like.mode() & 0o7777))
    })
}

/// Makes or replaces a program, unless it is there as it should be. Gives whether it was not.
pub(crate) fn replace_program(path: &Path, content: &[u8]) -> io::Result<bool> {
    const MODE: u32 = 0o755;
    if let Ok(present) = fs::symlink_metadata(path)
        && present.is_file()
        && present.mode() & 0o7777 == MODE
        && present.len() == content.len() as u64
        && fs::read(path)? == content
    {
        return Ok(false);
    }
    put(path, content, |file| file.set_permissions(Permissions::from_mode(MODE)))?;
    Ok(true)
}

/// Writes a file beside and renames it, so that it is there as a whole or not at all, also after a power failure.
fn put(path: &Path, content: &[u8], prepare: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    // Its ending is none of those that runtimes read.
    let mut name = OsStr::new(".").to_owned();
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".new-{}", std::process::id()));
    let temporary = directory.join(name);
    let written = (|| {
        remove(&temporary)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        prepare(&file)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync(directory)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Removes a file. Gives whether it was there.
pub(crate) fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes what happened to the names of a directory last.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}
