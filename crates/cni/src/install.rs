//! The plugin's place in a node's network configuration.
//!
//! A runtime uses the first configuration of its directory. If that is a list, our plugin is written at its end; all other
//! bytes stay. If it is a single plugin (`.conf`), a list with both is put beside, under a name that sorts before; the
//! original is not touched, and what the list was made from is noted in it. So the way back is always to take out what is
//! ours: nothing has to be remembered, and what others wrote in between stays.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use ringfence_control::announcements;

use crate::list::{self, Entry, List, ListError};
use crate::{PLUGIN, Settings, files};

/// How often a file is read again that somebody else writes at the same time.
const ROUNDS: u32 = 5;
/// How the name of a list that was made from a single plugin ends. `-` sorts before the dot of the original's ending.
const DERIVED: &str = "-ringfence.conflist";

/// Where the plugin is put, and with which settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the runtime looks for plugins: usually `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// Where the runtime looks for network configurations: usually `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
    /// The name of the configuration in there, if it is not the first.
    pub conf: Option<String>,
    /// The program that becomes the plugin.
    pub program: PathBuf,
    /// What the plugin does.
    pub settings: Settings,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Everything that was changed; nothing if all was as it should be.
    pub changes: Vec<Change>,
    /// What is left and why, for people.
    pub remarks: Vec<String>,
}

/// A change of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was made or rewritten.
    Written(PathBuf),
    /// It was removed.
    Removed(PathBuf),
}

/// The state of a directory of network configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installation {
    /// The runtime has no network at all yet.
    NoNetwork,
    /// The runtime uses this file, and the plugin is not in it.
    Absent(PathBuf),
    /// The runtime uses this file, and the plugin is in it, with these settings.
    Present(PathBuf, Settings),
}

/// Why the plugin could not be put in place, taken out or found.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is nothing to chain it to.
    #[error("no network configuration in {}: install a network plugin first", .0.display())]
    NoNetwork(PathBuf),
    /// The configuration that was named is not there.
    #[error("{}: no such network configuration", .0.display())]
    NoSuchConfiguration(PathBuf),
    /// A configuration is nothing that the plugin could be chained to. It was not touched.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The configuration.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody else writes a configuration all the time. It was not touched.
    #[error("{}: it changes all the time, try again later", .0.display())]
    Busy(PathBuf),
    /// The settings make no sense.
    #[error("{0}")]
    Settings(String),
    /// The file system refuses.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What could not be done.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Puts the plugin into place, or brings it up to date. Does nothing when all is as it should be.
///
/// # Errors
/// There is no configuration that the plugin could stand in, or the file system refuses. No file is left half written.
pub fn install(options: &Options) -> Result<Outcome, InstallError> {
    options.settings.check().map_err(InstallError::Settings)?;
    let mut outcome = Outcome::default();
    // First the program: a list with a plugin that is not there makes every pod fail.
    install_program(options, &mut outcome)?;
    install_entry(options, &mut outcome)?;
    Ok(outcome)
}

/// Puts the program where the runtime looks for it.
pub(crate) fn install_program(options: &Options, outcome: &mut Outcome) -> Result<(), InstallError> {
    let program = fs::read(&options.program).map_err(failed("read", &options.program))?;
    fs::create_dir_all(&options.bin_dir).map_err(failed("create", &options.bin_dir))?;
    let plugin = options.bin_dir.join(PLUGIN);
    let _lock = files::lock(&options.bin_dir).map_err(failed("lock", &options.bin_dir))?;
    if files::replace_program(&plugin, &program).map_err(failed("write", &plugin))? {
        outcome.changes.push(Change::Written(plugin));
    }
    Ok(())
}

/// Puts the plugin into the configuration that the runtime uses.
pub(crate) fn install_entry(options: &Options, outcome: &mut Outcome) -> Result<(), InstallError> {
    let directory = &options.conf_dir;
    let _lock = match files::lock(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(InstallError::NoNetwork(directory.clone()));
        }
        lock => lock.map_err(failed("lock", directory))?,
    };
    let used = match used(directory, options.conf.as_deref()) {
        Err(error @ InstallError::NoNetwork(_)) => {
            // A list that was made of a network's configuration does not outlive it.
            remove_derived(directory, None, outcome)?;
            return Err(error);
        }
        used => used?,
    };
    let list = if is_list(&used) { used.clone() } else { derived_name(&used) };
    settle(&used, || {
        let text = read(&used)?;
        let unusable = |reason: ListError| InstallError::Unusable { path: used.clone(), reason: reason.to_string() };
        let wanted = if is_list(&used) {
            let wanted = List::parse(&text).and_then(|list| list.with(&Entry::new(&options.settings)));
            wanted.map_err(unusable)?
        } else {
            let name = used.file_name().unwrap_or_default().to_string_lossy();
            Cow::Owned(list::derive(&text, &name, &options.settings).map_err(unusable)?)
        };
        let like = fs::metadata(&used).map_err(failed("read", &used))?;
        if fs::read(&list).is_ok_and(|present| present == wanted.as_bytes()) {
            return Ok(true);
        }
        if read(&used)? != text {
            return Ok(false);
        }
        files::replace(&list, wanted.as_bytes(), &like).map_err(failed("write", &list))?;
        outcome.changes.push(Change::Written(list.clone()));
        Ok(true)
    })?;
    // Lists that were made of other configurations would go on standing before those that are used now.
    remove_derived(directory, Some(&list), outcome)
}

/// Takes the plugin out of all configurations, and removes its program. Does nothing when that is so already.
///
/// The runtime may call the plugin once more for each pod that was started with it (CRI-O does). So while pods are announced
/// below `run_directory`, the program stays, and a remark says so; `force` removes it all the same.
///
/// # Errors
/// The file system refuses. No file is left half written.
pub fn uninstall(bin_dir: &Path, conf_dir: &Path, run_directory: &Path, force: bool) -> Result<Outcome, InstallError> {
    let mut outcome = Outcome::default();
    match files::lock(conf_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        lock => {
            let _lock = lock.map_err(failed("lock", conf_dir))?;
            remove_derived(conf_dir, None, &mut outcome)?;
            for path in files::configurations(conf_dir).map_err(failed("list", conf_dir))? {
                remove_entry(&path, &mut outcome)?;
            }
        }
    }
    let plugin = bin_dir.join(PLUGIN);
    let announced = announcements::read_all(run_directory).map_err(failed("read", run_directory))?;
    let pods = announced.sandboxes.len() + announced.unreadable.len();
    if pods > 0 && !force && plugin.exists() {
        outcome.remarks.push(format!(
            "{} stays: {pods} pods were started with it, and the runtime may call it when they end; run this again when \
             they are gone, or with --force",
            plugin.display()
        ));
    } else if files::remove(&plugin).map_err(failed("remove", &plugin))? {
        outcome.changes.push(Change::Removed(plugin));
    }
    Ok(outcome)
}

/// Tells whether the plugin is in the configuration that the runtime uses: the first, or that of the name `conf`.
///
/// # Errors
/// The configuration cannot be read, or is none.
pub fn installed(conf_dir: &Path, conf: Option<&str>) -> Result<Installation, InstallError> {
    let used = match used(conf_dir, conf) {
        Err(InstallError::NoNetwork(_)) => return Ok(Installation::NoNetwork),
        used => used?,
    };
    let list = if is_list(&used) { used.clone() } else { derived_name(&used) };
    if !list.exists() {
        return Ok(Installation::Absent(used));
    }
    let text = read(&list)?;
    let unusable =
        |reason: &dyn std::error::Error| InstallError::Unusable { path: list.clone(), reason: reason.to_string() };
    let present = List::parse(&text).map_err(|error| unusable(&error))?.entry();
    Ok(match present {
        Some(entry) => Installation::Present(list.clone(), entry.map_err(|error| unusable(&error))?.settings),
        None => Installation::Absent(used),
    })
}

/// The configuration that the runtime would use if ours was not there.
fn used(directory: &Path, conf: Option<&str>) -> Result<PathBuf, InstallError> {
    if let Some(name) = conf {
        let mut path = directory.join(name);
        if !path.exists() {
            return Err(InstallError::NoSuchConfiguration(path));
        }
        if let Some(original) = derived_from(&path)? {
            path = directory.join(original);
        }
        return Ok(path);
    }
    for path in files::configurations(directory).map_err(failed("list", directory))? {
        if derived_from(&path)?.is_none() {
            return Ok(path);
        }
    }
    Err(InstallError::NoNetwork(directory.to_owned()))
}

fn is_list(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("conflist"))
}

/// Where the list goes that is made of a single plugin.
fn derived_name(path: &Path) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(DERIVED);
    path.with_file_name(name)
}

/// The name of the file that a list was made of, if it was made by us. Other files need not be readable.
fn derived_from(path: &Path) -> Result<Option<String>, InstallError> {
    if !path.as_os_str().as_encoded_bytes().ends_with(DERIVED.as_bytes()) {
        return Ok(None);
    }
    let text = read(path)?;
    let entry = List::parse(&text).ok().and_then(|list| list.entry()?.ok());
    Ok(entry.and_then(|entry| entry.derived_from))
}

/// Removes the lists that were made of single plugins, except for one.
fn remove_derived(directory: &Path, except: Option<&Path>, outcome: &mut Outcome) -> Result<(), InstallError> {
    for path in files::configurations(directory).map_err(failed("list", directory))? {
        if Some(path.as_path()) != except
            && derived_from(&path)?.is_some()
            && files::remove(&path).map_err(failed("remove", &path))?
        {
            outcome.changes.push(Change::Removed(path));
        }
    }
    Ok(())
}

/// Takes the plugin out of a list. What is no list is left alone.
fn remove_entry(path: &Path, outcome: &mut Outcome) -> Result<(), InstallError> {
    settle(path, || {
        let text = match read(path) {
            Err(InstallError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(true),
            // Not even text: nothing that we have written.
            Err(InstallError::File { source, .. }) if source.kind() == io::ErrorKind::InvalidData => return Ok(true),
            text => text?,
        };
        let without = match List::parse(&text) {
            Ok(list) if list.has_ours() => list.without(),
            Ok(_) => return Ok(true),
            Err(error) => {
                if text.contains(PLUGIN) {
                    outcome.remarks.push(format!("{} names {PLUGIN}, but {error}; left as it is", path.display()));
                }
                return Ok(true);
            }
        };
        let like = fs::metadata(path).map_err(failed("read", path))?;
        if read(path)? != text {
            return Ok(false);
        }
        files::replace(path, without.as_bytes(), &like).map_err(failed("write", path))?;
        outcome.changes.push(Change::Written(path.to_owned()));
        Ok(true)
    })
}

/// Tries again what gives `false`: somebody has written in between. What is written between that last look and our own
/// writing is lost; the file system has no way to prevent that, and [`keep`](crate::keep) sees the loss no more than anybody.
fn settle(path: &Path, mut attempt: impl FnMut() -> Result<bool, InstallError>) -> Result<(), InstallError> {
    for _ in 0..ROUNDS {
        if attempt()? {
            return Ok(());
        }
    }
    Err(InstallError::Busy(path.to_owned()))
}

fn read(path: &Path) -> Result<String, InstallError> {
    fs::read_to_string(path).map_err(failed("read", path))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError::File { what, path, source }
}
