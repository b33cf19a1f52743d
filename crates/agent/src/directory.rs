//! A folder of manifests as the source, for nodes without an API server.
//!
//! The kernel tells when something below the folder changes (inotify); as that is silent about files reached by links and on
//! some file systems, everything is also read again every few seconds. Only what two readings in a row agree on counts, so
//! that a file is seldom taken while it is written. Only renaming a complete file into place excludes it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ringfence_k8s::{Diagnostic, Manifests, Severity, Source, parse};
use ringfence_model::{Object, ObjectKey};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use crate::Change;
use crate::source::{Event, SourceError, Update};

/// How often everything is read again though nothing was reported.
const POLL: Duration = Duration::from_secs(5);
/// How long files must stay as they are before they count.
const SETTLE: Duration = Duration::from_millis(100);
/// How often that is tried in a row.
const ROUNDS: u32 = 10;

/// File names and contents, sorted by name.
type Texts = Vec<(String, Vec<u8>)>;

/// A folder that is followed.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    settle: Duration,
    /// Nothing when the kernel has no more of them: then the folder is only polled.
    watch: Option<OwnedFd>,
    last: Option<State>,
    /// The last attempt to read it failed.
    failed: bool,
}

/// What was read, completely.
#[derive(Debug)]
struct State {
    texts: Texts,
    objects: BTreeMap<ObjectKey, Object>,
    diagnostics: Vec<Diagnostic>,
}

impl Directory {
    /// A folder that must exist now. If it goes away later, its last state stays valid.
    ///
    /// # Errors
    /// There is no such folder.
    pub fn open(path: &Path) -> Result<Directory, SourceError> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {
                let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
                Ok(Directory { path: path.to_owned(), settle: SETTLE, watch, last: None, failed: false })
            }
            Ok(_) => Err(SourceError::NotAFolder(path.to_owned())),
            Err(source) => Err(SourceError::Unreadable { path: path.to_owned(), source }),
        }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reports the folder's state, then what changes in it, from a thread of its own that ends when nobody listens any more.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn follow(mut self, events: Sender<Event>) -> io::Result<()> {
        thread::Builder::new().name("directory".to_owned()).spawn(move || {
            while !events.is_closed() {
                self.watch_folders();
                if let Some(event) = self.look()
                    && events.blocking_send(event).is_err()
                {
                    return;
                }
                self.wait();
            }
        })?;
        Ok(())
    }

    /// Watches all folders, also those that are new. Before they are read, so that no change falls in between.
    fn watch_folders(&self) {
        const CHANGES: WatchFlags = WatchFlags::CREATE
            .union(WatchFlags::DELETE)
            .union(WatchFlags::MOVE)
            .union(WatchFlags::MODIFY)
            .union(WatchFlags::CLOSE_WRITE)
            .union(WatchFlags::ATTRIB);
        let Some(watch) = &self.watch else { return };
        let folders =
            walkdir::WalkDir::new(&self.path).into_iter().flatten().filter(|entry| entry.file_type().is_dir());
        for folder in folders {
            // One that is not watched is polled.
            let _ = inotify::add_watch(watch, folder.path(), CHANGES | WatchFlags::ONLYDIR);
        }
    }

    /// Waits until something may have changed.
    fn wait(&self) {
        let Some(watch) = &self.watch else { return thread::sleep(POLL) };
        let longest = Timespec { tv_sec: POLL.as_secs().cast_signed(), tv_nsec: 0 };
        let _ = poll(&mut [PollFd::new(watch, PollFlags::IN)], Some(&longest));
        // Others may be writing into the folder all the time.
        thread::sleep(self.settle);
        // What happened does not matter: everything is read.
        let mut events = [0_u8; 4096];
        while rustix::io::read(watch, &mut events).is_ok_and(|length| length > 0) {}
    }

    /// Reads the folder. Nothing when there is nothing new to say.
    fn look(&mut self) -> Option<Event> {
        match self.update() {
            Ok(update) => {
                let recovered = std::mem::take(&mut self.failed);
                update
                    .or_else(|| {
                        let last = self.last.as_ref().filter(|_| recovered)?;
                        Some(Update::new(Vec::new(), last.diagnostics.clone()))
                    })
                    .map(Event::Update)
            }
            Err(error) => {
                self.failed = true;
                Some(Event::Failed(error))
            }
        }
    }

    /// Takes over what is there now, as a whole or not at all.
    fn update(&mut self) -> Result<Option<Update>, SourceError> {
        let received = Instant::now();
        let texts = self.settled()?;
        if self.knows(&texts) {
            return Ok(None);
        }
        let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
        let Manifests { objects, diagnostics, .. } = parse(&sources);
        if let Some(fatal) = diagnostics.iter().find(|diagnostic| diagnostic.severity == Severity::Fatal) {
            return Err(SourceError::Fatal(Box::new(fatal.clone())));
        }
        let objects: BTreeMap<_, _> = objects.into_iter().map(|object| (object.key(), object)).collect();
        let changes = match &self.last {
            None => vec![Change::Reset(objects.values().cloned().collect())],
            Some(last) => difference(&last.objects, &objects),
        };
        self.last = Some(State { texts, objects, diagnostics: diagnostics.clone() });
        Ok(Some(Update { received, changes, diagnostics: Some(diagnostics) }))
    }

    fn knows(&self, texts: &Texts) -> bool {
        self.last.as_ref().is_some_and(|last| last.texts == *texts)
    }

    /// Reads until two readings in a row agree. One that finds the last state counts at once.
    fn settled(&self) -> Result<Texts, SourceError> {
        let mut found = read(&self.path);
        for _ in 0..ROUNDS {
            if found.as_ref().is_ok_and(|texts| self.knows(texts)) {
                return found;
            }
            thread::sleep(self.settle);
            let again = read(&self.path);
            match (&found, &again) {
                (Ok(texts), Ok(same)) if texts == same => return again,
                (Err(_), Err(_)) => return again,
                _ => found = again,
            }
        }
        Err(SourceError::Unsettled(self.path.clone()))
    }
}

/// What leads from one state to the other.
fn difference(from: &BTreeMap<ObjectKey, Object>, to: &BTreeMap<ObjectKey, Object>) -> Vec<Change> {
    let gone = from.keys().filter(|key| !to.contains_key(key)).map(|key| Change::Delete(key.clone()));
    let new = to.iter().filter(|(key, object)| from.get(key) != Some(object)).map(|(_, object)| object.clone());
    gone.chain(new.map(Change::Apply)).collect()
}

/// Reads all manifests below a folder, each file once.
fn read(folder: &Path) -> Result<Texts, SourceError> {
    let mut texts = Texts::new();
    let mut known = BTreeSet::new();
    for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.map_err(|error| SourceError::Unreadable {
            path: error.path().unwrap_or(folder).to_owned(),
            source: error.into(),
        })?;
        let path = entry.path();
        if !is_manifest(path) {
            continue;
        }
        let unreadable = |source| SourceError::Unreadable { path: path.to_owned(), source };
        // A link to a file counts as the file, and one that leads nowhere is a file that cannot be read. A link to a folder
        // is not followed, so links cannot make a circle.
        if std::fs::metadata(path).map_err(unreadable)?.is_file()
            && known.insert(path.canonicalize().map_err(unreadable)?)
        {
            texts.push((path.display().to_string(), read_file(path)?));
        }
    }
    if texts.is_empty() { Err(SourceError::NoManifests(folder.to_owned())) } else { Ok(texts) }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json")
}

/// Reads no more than one byte past the parser's limit: enough for it to see that there is too much.
fn read_file(path: &Path) -> Result<Vec<u8>, SourceError> {
    let unreadable = |source| SourceError::Unreadable { path: path.to_owned(), source };
    let mut text = Vec::new();
    let limit = ringfence_k8s::MAX_BYTES as u64 + 1;
    File::open(path).map_err(unreadable)?.take(limit).read_to_end(&mut text).map_err(unreadable)?;
    if text.is_empty() { Err(SourceError::Empty(path.to_owned())) } else { Ok(text) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn pod(name: &str, address: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: node}}\n\
             status: {{podIPs: [{{ip: {address}}}]}}\n"
        )
    }

    /// A folder with the pods a and b, and its source after the first look.
    fn followed() -> (tempfile::TempDir, Directory) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), pod("a", "10.0.0.1")).unwrap();
        fs::create_dir(folder.path().join("more")).unwrap();
        fs::write(
            folder.path().join("more/b.json"),
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}}"#,
        )
        .unwrap();
        let mut directory = Directory::open(folder.path()).unwrap();
        directory.settle = Duration::ZERO;
        let Some(Event::Update(Update { changes, .. })) = directory.look() else { panic!("no first state") };
        let [Change::Reset(objects)] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!(names(objects.iter()), ["a", "b"]);
        (folder, directory)
    }

    fn names<'a>(objects: impl Iterator<Item = &'a Object>) -> Vec<&'a str> {
        let pod = |object: &'a Object| match object {
            Object::Pod(pod) => Some(&*pod.name),
            _ => None,
        };
        objects.filter_map(pod).collect()
    }

    fn changes(directory: &mut Directory) -> Vec<Change> {
        match directory.look() {
            Some(Event::Update(update)) => update.changes,
            other => panic!("{other:?}"),
        }
    }

    fn failure(directory: &mut Directory) -> String {
        match directory.look() {
            Some(Event::Failed(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_differences_are_sent() {
        let (folder, mut directory) = followed();
        assert!(directory.look().is_none());
        fs::write(folder.path().join("a.yaml"), pod("a", "10.0.0.2")).unwrap();
        let found = changes(&mut directory);
        let [Change::Apply(Object::Pod(pod))] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((&*pod.name, pod.addresses.as_slice()), ("a", ["10.0.0.2".parse().unwrap()].as_slice()));
        fs::remove_file(folder.path().join("more/b.json")).unwrap();
        let found = changes(&mut directory);
        assert!(matches!(found.as_slice(), [Change::Delete(ObjectKey::Pod(id))] if id.0.contains('b')), "{found:?}");
        assert!(directory.look().is_none());
    }

    #[test]
    fn an_object_that_moves_to_another_file_has_not_changed() {
        let (folder, mut directory) = followed();
        fs::rename(folder.path().join("a.yaml"), folder.path().join("z.yaml")).unwrap();
        assert!(changes(&mut directory).is_empty());
    }

    #[test]
    fn what_cannot_be_read_changes_nothing() {
        let (folder, mut directory) = followed();
        let file = folder.path().join("a.yaml");
        let good = fs::read(&file).unwrap();
        let broken: [(&[u8], &str); 3] =
            [(b"kind: Pod\nmetadata: {name", "fatal"), (b"", "is empty"), (b"\xff", "fatal")];
        for (text, reason) in broken {
            fs::write(&file, text).unwrap();
            let said = failure(&mut directory);
            assert!(said.contains(reason) && said.contains("a.yaml"), "{said}");
            fs::write(&file, &good).unwrap();
            assert!(changes(&mut directory).is_empty(), "recovered, and nothing is different");
            assert!(directory.look().is_none());
        }
        symlink("/nowhere", folder.path().join("link.yaml")).unwrap();
        assert!(failure(&mut directory).contains("link.yaml"));
        fs::remove_dir_all(folder.path()).unwrap();
        assert!(failure(&mut directory).contains("cannot read"));
        fs::create_dir(folder.path()).unwrap();
        assert!(failure(&mut directory).contains("no .yaml"));
        fs::write(&file, &good).unwrap();
        assert!(matches!(changes(&mut directory).as_slice(), [Change::Delete(_)]));
    }

    #[test]
    fn what_does_not_stop_changing_does_not_count() {
        let (folder, mut directory) = followed();
        // The writer may have to wait for a processor for some time.
        directory.settle = Duration::from_millis(300);
        let file = folder.path().join("a.yaml");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let writer = scope.spawn(|| {
                // Each of them is a complete file.
                for round in 1_u64.. {
                    fs::write(folder.path().join("new"), pod("a", "10.0.0.2") + &format!("# {round}\n")).unwrap();
                    fs::rename(folder.path().join("new"), &file).unwrap();
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
            });
            thread::sleep(Duration::from_millis(50));
            let event = directory.look();
            stop.store(true, Ordering::Relaxed);
            assert!(matches!(event, Some(Event::Failed(SourceError::Unsettled(_)))), "{event:?}");
            writer.join().unwrap();
        });
        assert!(matches!(changes(&mut directory).as_slice(), [Change::Apply(_)]));
    }

    #[test]
    fn links_count_once_and_circles_do_not_matter() {
        let (folder, mut directory) = followed();
        symlink(folder.path().join("a.yaml"), folder.path().join("b.yaml")).unwrap();
        symlink(folder.path(), folder.path().join("more/circle")).unwrap();
        assert!(directory.look().is_none());
    }

    #[test]
    fn not_a_folder() {
        let (folder, _) = followed();
        let file = Directory::open(&folder.path().join("a.yaml")).unwrap_err();
        assert!(file.to_string().ends_with("a.yaml is not a folder"));
        let nothing = Directory::open(&folder.path().join("nothing")).unwrap_err();
        assert!(nothing.to_string().contains("nothing: No such file"), "{nothing}");
    }
}
