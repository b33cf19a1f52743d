//! Network plugins write their configuration anew, whenever they are started or upgraded, and our plugin is not in it then.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};

use crate::install::{InstallError, Options, Outcome, install_entry, install_program};

/// How often the directory is looked at though nothing was reported: it may not have been there, or be on a file system
/// that reports nothing.
const POLL: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// How long after a change the directory is looked at: those who write file after file get the time to end.
const SETTLE: Duration = Duration::from_millis(100);

/// Installs the plugin and puts it back whenever somebody has written a configuration without it, for ever.
///
/// `report` hears what was done and what went wrong, the same failure once.
pub fn keep(options: &Options, mut report: impl FnMut(Result<Outcome, InstallError>)) -> ! {
    let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok();
    let mut said = None;
    let mut program = false;
    loop {
        // Before looking, so that nothing happens unseen in between. Watching what is watched already changes nothing.
        if let Some(watch) = &watch {
            follow(watch, &options.conf_dir);
        }
        let mut outcome = Outcome::default();
        // The program is long, and nobody else writes it: it is compared once and then only put back.
        let plugin = options.bin_dir.join(crate::PLUGIN);
        let done = if program && plugin.exists() { Ok(()) } else { install_program(options, &mut outcome) };
        program |= done.is_ok();
        let result = done.and_then(|()| install_entry(options, &mut outcome)).map(|()| outcome);
        let failure = result.as_ref().err().map(ToString::to_string);
        let news = match &result {
            Ok(outcome) => said.is_some() || *outcome != Outcome::default(),
            Err(_) => failure != said,
        };
        said = failure;
        if news {
            report(result);
        }
        wait(watch.as_ref());
    }
}

fn follow(watch: &OwnedFd, directory: &Path) {
    let events = WatchFlags::CLOSE_WRITE
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::ONLYDIR;
    // A directory that is not there yet is polled.
    let _ = inotify::add_watch(watch, directory, events);
}

/// Until something happens in the directory, or it is time to look again.
fn wait(watch: Option<&OwnedFd>) {
    let Some(watch) = watch else {
        return thread::sleep(Duration::from_secs(10));
    };
    let mut descriptors = [PollFd::from_borrowed_fd(watch.as_fd(), PollFlags::IN)];
    if poll(&mut descriptors, Some(&POLL)).is_ok_and(|ready| ready > 0) {
        thread::sleep(SETTLE);
    }
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(watch, &mut buffer);
    while events.next().is_ok() {}
}
