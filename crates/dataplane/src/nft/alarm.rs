//! Hears of everybody's transactions, as the kernel announces them to a multicast group.
//!
//! For each transaction the kernel sends a message about every object it adds or deletes, and then its number and who made
//! it. Numbers are consecutive, so a gap tells that something was not heard.
//!
//! Our own transactions need not be heard, and must not be: while anybody listens, the kernel allocates a page for each
//! element that is written (measured for 100,000 elements: 700 MB, and half as much time again). A filter on the socket
//! comes too late for that. So we leave the group while we write. What others do meanwhile is missed; the numbers tell.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::Socket;

use super::attribute::{chain, elements, generation, rule, set, table};
use super::inventory::{is_text, number, text};
use super::name::TABLE;
use super::netlink::{FAMILY_INET, GENERIC_HEADER};
use super::ruleset::comment;
use super::socket::{lost, messages, not_opened, open};
use crate::backend::ApplyError;

/// `NFNLGRP_NFTABLES` of `linux/netfilter/nfnetlink.h`.
const GROUP: u32 = 7;
/// Room for what others do until we look: some thousand rules. When it is not enough, the table is read back.
const QUEUE_BYTES: usize = 4 * 1024 * 1024;
/// Longer than any datagram of an announcement.
const RECEIVE_BYTES: usize = 64 * 1024;

/// The socket. It belongs to the network namespace of the thread that opened it, for good.
pub(super) struct Alarm {
    socket: Socket,
    received: Vec<u8>,
    /// What the transaction whose number has not come yet did to our table.
    harm: Option<Harm>,
}

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// A transaction of somebody else.
    Transaction {
        /// Its number.
        number: u32,
        /// What it did to our table, for people.
        harm: Option<String>,
    },
    /// Something was not heard.
    Missed,
}

impl Alarm {
    pub(super) fn open() -> Result<Alarm, ApplyError> {
        let alarm = Alarm { socket: open(QUEUE_BYTES)?, received: Vec::with_capacity(RECEIVE_BYTES), harm: None };
        alarm.socket.add_membership(GROUP).map_err(not_opened)?;
        Ok(alarm)
    }

    /// Stops to listen.
    pub(super) fn leave(&self) -> Result<(), ApplyError> {
        self.socket.drop_membership(GROUP).map_err(|source| ApplyError::Unsent {
            operation: "not listening to the packet filter while writing",
            source: source.into(),
        })
    }

    /// Listens again.
    pub(super) fn join(&self) -> Result<(), ApplyError> {
        self.socket.add_membership(GROUP).map_err(|error| lost("listening to the packet filter again", error))
    }

    /// Drops what was heard up to now.
    pub(super) fn forget(&mut self) {
        self.news();
        self.harm = None;
    }

    /// All that was heard since the last call, in order.
    pub(super) fn news(&mut self) -> Vec<News> {
        let mut news = Vec::new();
        loop {
            self.received.clear();
            match self.socket.recv(&mut self.received, libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
                Ok(length) if length == self.received.len() => read(&self.received, &mut self.harm, &mut news),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return news,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // ENOBUFS: the queue was full, or the kernel had no memory for an announcement. What is in the queue comes
                // after that.
                Ok(_) | Err(_) => {
                    self.harm = None;
                    news.push(News::Missed);
                }
            }
        }
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What others have done to our table.
#[derive(Debug)]
struct Harm {
    /// The first of it, or the worst.
    what: String,
    /// In so many announcements.
    count: usize,
}

fn read(datagram: &[u8], harm: &mut Option<Harm>, news: &mut Vec<News>) {
    for message in messages(datagram) {
        let Ok(message) = message else {
            news.push(News::Missed);
            return;
        };
        let kind = i32::from(message.kind) - (libc::NFNL_SUBSYS_NFTABLES << 8);
        let object = message.payload.get(GENERIC_HEADER..).unwrap_or_default();
        if kind == libc::NFT_MSG_NEWGEN {
            news.push(match number(object, generation::ID) {
                Some(number) => News::Transaction { number, harm: harm.take().map(|harm| harm.explained(object)) },
                None => News::Missed,
            });
        } else if message.payload.first() == Some(&FAMILY_INET) && is_text(object, table::NAME, TABLE) {
            let known = harm.get_or_insert_with(|| Harm { what: described(kind, object), count: 0 });
            known.count += 1;
            if matches!(kind, libc::NFT_MSG_NEWTABLE | libc::NFT_MSG_DELTABLE) {
                known.what = described(kind, object);
            }
        }
    }
}

/// What an announcement about our table tells.
fn described(kind: i32, object: &[u8]) -> String {
    let named = |attribute| comment(&text(object, attribute).unwrap_or_default());
    match kind {
        libc::NFT_MSG_NEWTABLE => "changed the flags".to_owned(),
        libc::NFT_MSG_DELTABLE => "deleted all".to_owned(),
        libc::NFT_MSG_NEWCHAIN => format!("added or changed chain {}", named(chain::NAME)),
        libc::NFT_MSG_DELCHAIN => format!("deleted chain {}", named(chain::NAME)),
        libc::NFT_MSG_NEWRULE => format!("added a rule to chain {}", named(rule::CHAIN)),
        libc::NFT_MSG_DELRULE => format!("deleted a rule of chain {}", named(rule::CHAIN)),
        libc::NFT_MSG_NEWSET => format!("added set {}", named(set::NAME)),
        libc::NFT_MSG_DELSET => format!("deleted set {}", named(set::NAME)),
        libc::NFT_MSG_NEWSETELEM => format!("added to set {}", named(elements::SET)),
        libc::NFT_MSG_DELSETELEM => format!("deleted from set {}", named(elements::SET)),
        _ => "changed something".to_owned(),
    }
}

impl Harm {
    /// With who did it, as the end of the transaction tells.
    fn explained(&self, end: &[u8]) -> String {
        let name = text(end, generation::PROC_NAME).map_or_else(|| "somebody".to_owned(), |name| comment(&name));
        let process = number(end, generation::PROC_PID).map_or_else(String::new, |pid| format!(" (process {pid})"));
        let more = if self.count > 1 { ", and more" } else { "" };
        format!("{name}{process} {} in table inet {TABLE}{more}", self.what)
    }
}
