//! A file that names networks of other clusters, followed while it changes.
//!
//! One CIDR on each line; what comes after `#` is a comment. What two readings in a row agree on counts, so that a file is
//! seldom taken while it is written. A file that is wrong changes nothing.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::mpsc::Sender;

/// How often the file is read.
const POLL: Duration = Duration::from_secs(1);
/// How much is read.
const MOST_BYTES: u64 = 1 << 20;

/// What is in the file, or what is wrong with it.
pub type Reading = Result<Vec<IpNet>, String>;

/// A file that is followed.
#[derive(Debug)]
pub struct NetworkFile {
    path: PathBuf,
    poll: Duration,
}

impl NetworkFile {
    /// A file, whether it is there or not.
    pub fn new(path: PathBuf) -> NetworkFile {
        NetworkFile { path, poll: POLL }
    }

    /// What is in it now.
    pub fn read(&self) -> Reading {
        text(&self.path).and_then(|text| parse(&text)).map_err(|error| format!("{}: {error}", self.path.display()))
    }

    /// Reports what is in the file whenever that is different from `known`, from a thread of its own that ends when nobody
    /// listens any more.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn follow(self, mut known: Reading, readings: Sender<Reading>) -> io::Result<()> {
        thread::Builder::new().name("networks".to_owned()).spawn(move || {
            let mut last = known.clone();
            while !readings.is_closed() {
                thread::sleep(self.poll);
                let now = self.read();
                if now == last && now != known {
                    if readings.blocking_send(now.clone()).is_err() {
                        return;
                    }
                    known.clone_from(&now);
                }
                last = now;
            }
        })?;
        Ok(())
    }
}

fn text(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(_) if text.len() as u64 > MOST_BYTES => Err(format!("it is larger than {} KiB", MOST_BYTES >> 10)),
        Ok(0) => Err("it is empty: write a comment if no network is meant".to_owned()),
        Ok(_) => Ok(text),
        Err(error) => Err(error.to_string()),
    }
}

/// The networks of a text, or the first line that is none.
fn parse(text: &str) -> Result<Vec<IpNet>, String> {
    let mut networks = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match line.parse::<IpNet>() {
            Ok(network) => networks.push(network.trunc()),
            Err(_) => return Err(format!("line {number}: \"{}\" is not a CIDR", shown(line))),
        }
    }
    Ok(networks)
}

/// A line as far as it fits into a message, without what would break it.
fn shown(line: &str) -> String {
    const LONGEST: usize = 60;
    line.chars().take(LONGEST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_line_is_a_network() {
        let text = "# the other cluster\n10.245.0.0/16 # pods\n\n  10.97.0.7/12\nfd00:245::/48\r\n";
        let read = parse(text).unwrap();
        assert_eq!(
            read.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.245.0.0/16", "10.96.0.0/12", "fd00:245::/48"]
        );
        assert_eq!(parse("# none\n"), Ok(Vec::new()));
        for (wrong, said) in [
            ("10.0.0.0/8\n10.0.0.1", "line 2: \"10.0.0.1\" is not"),
            ("10.0.0.0/33", "line 1"),
            ("10.0.0.0/8 10.1.0.0/16", "line 1"),
            ("10.0.0.0/8,10.1.0.0/16", "line 1"),
            ("\u{7}everything", "\u{fffd}everything"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        assert!(parse(&"x".repeat(1000)).unwrap_err().len() < 100);
    }

    #[test]
    fn what_cannot_be_read_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("networks");
        let file = NetworkFile::new(path.clone());
        assert!(file.read().unwrap_err().contains("No such file"));
        fs::write(&path, "").unwrap();
        assert!(file.read().unwrap_err().contains("empty"));
        fs::write(&path, b"\xff\xfe").unwrap();
        assert!(file.read().unwrap_err().contains("UTF-8"));
        fs::write(&path, "#".repeat(usize::try_from(MOST_BYTES).unwrap() + 1)).unwrap();
        assert!(file.read().unwrap_err().contains("larger"));
        fs::write(&path, "10.0.0.0/8").unwrap();
        assert_eq!(file.read().unwrap().len(), 1);
    }

    #[test]
    fn changes_are_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("networks");
        fs::write(&path, "10.0.0.0/8").unwrap();
        let file = NetworkFile { path: path.clone(), poll: Duration::from_millis(5) };
        let known = file.read();
        let (sender, mut readings) = channel(8);
        file.follow(known, sender).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert!(readings.try_recv().is_err(), "nothing is different");
        // Renamed into place, as a volume of Kubernetes does it.
        fs::write(folder.path().join("new"), "10.0.0.0/8\n10.1.0.0/16").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert_eq!(readings.blocking_recv().unwrap().unwrap().len(), 2);
        fs::write(folder.path().join("new"), "nonsense").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(readings.blocking_recv().unwrap().unwrap_err().contains("line 1"));
        thread::sleep(Duration::from_millis(50));
        assert!(readings.try_recv().is_err(), "said once");
    }
}
