//! The nftables backend: writes programs into the kernel's packet filter over netlink.
//!
//! ```text
//! Program ─► layout ─► Ruleset ─┬─► text                     what a program looks like in nft's language
//!                               └─► transaction::replace ─┐
//! ProgramDiff ─► delta::update ───────────────────────────┴─► Op ─► netlink, expression ─► socket ─► kernel
//! ```
//!
//! Everything of ours is in one table, `inet ringfence`, and nothing outside it is ever read or written.

mod attribute;
mod delta;
mod element;
mod expression;
mod inventory;
mod layout;
mod name;
mod netlink;
mod ruleset;
mod socket;
mod text;
mod transaction;
mod userdata;

use ringfence_compile::Program;

pub use name::{ChainName, Content, Epoch, Hook, Members, SetName, Shape, TABLE};
pub use ruleset::{DenyAction, Element, Field, Rule, Ruleset, comment};

use crate::backend::{Applied, ApplyError, Backend};
use crate::diff::ProgramDiff;
use layout::Layout;
use netlink::Batch;
use socket::{NftSocket, Sent};
use transaction::{Op, TableState};

/// How often to take stock again when others change the packet filter meanwhile.
const ATTEMPTS: u32 = 10;

/// Choices of the administrator.
#[derive(Clone, Copy, Debug, Default)]
pub struct NftOptions {
    /// What to do with packets that are refused.
    pub deny: DenyAction,
}

/// Enforces programs with nftables, in the network namespace of the thread that made it.
pub struct NftBackend {
    options: NftOptions,
    socket: NftSocket,
    /// The number of our last transaction, if that is known. While it is the last of all, nobody has touched our table.
    ours: Option<u32>,
    /// The epoch that is in the kernel.
    epoch: Epoch,
}

impl NftBackend {
    /// Opens the socket, in the network namespace of the calling thread. The kernel is not changed.
    ///
    /// # Errors
    /// There is no netlink to be had.
    pub fn new(options: NftOptions) -> Result<NftBackend, ApplyError> {
        Ok(NftBackend { options, socket: NftSocket::open()?, ours: None, epoch: Epoch::A })
    }

    fn layout<'a>(&self, program: &'a Program, epoch: Epoch) -> Layout<'a> {
        Layout { program, deny: self.options.deny, epoch }
    }

    /// Performs `ops` if no transaction came after the one numbered `last`; without a number, in any case.
    fn transact(&mut self, ops: &[Op], last: Option<u32>) -> Result<Sent, ApplyError> {
        if ops.is_empty() {
            return Ok(Sent::Committed(Applied::default()));
        }
        self.ours = None;
        let sent = self.socket.transact(&Batch::new(ops, last, self.socket.sequence()))?;
        if let (Sent::Committed(_), Some(last)) = (&sent, last) {
            // The kernel counts transactions by one, and leaves out zero (`nf_tables_commit`).
            self.ours = Some(last.checked_add(1).unwrap_or(1));
        }
        Ok(sent)
    }

    /// Looks at the kernel and changes it, as one step: if anybody changes the packet filter in between, again.
    fn look_and_change(
        &mut self,
        mut plan: impl FnMut(&mut NftSocket) -> Result<Option<Vec<Op>>, ApplyError>,
    ) -> Result<Applied, ApplyError> {
        for _ in 0..ATTEMPTS {
            let last = inventory::last_transaction(&mut self.socket)?;
            let Some(ops) = plan(&mut self.socket)? else {
                continue;
            };
            match self.transact(&ops, last)? {
                Sent::Committed(applied) => return Ok(applied),
                Sent::Outdated => {}
            }
        }
        Err(ApplyError::Contended { attempts: ATTEMPTS })
    }

    /// Deletes our table. Whether there was one.
    pub(crate) fn delete_table(&mut self) -> Result<bool, ApplyError> {
        let applied = self.look_and_change(|socket| {
            let present = inventory::inventory(socket)?;
            Ok(present.map(|present| match present.table {
                TableState::Absent => Vec::new(),
                TableState::Good | TableState::Flagged => vec![Op::DeleteTable],
            }))
        })?;
        Ok(applied.messages > 0)
    }
}

impl Backend for NftBackend {
    type Demand = Program;

    fn name(&self) -> &'static str {
        "nftables"
    }

    fn replace(&mut self, program: &Program) -> Result<Applied, ApplyError> {
        let layout = self.layout(program, Epoch::A);
        let applied = self.look_and_change(|socket| {
            let present = inventory::inventory(socket)?;
            Ok(present.map(|present| transaction::replace(layout.ruleset(), present)))
        })?;
        self.epoch = Epoch::A;
        Ok(applied)
    }

    fn update(&mut self, from: &Program, to: &Program, diff: &ProgramDiff) -> Result<Applied, ApplyError> {
        let epoch = if delta::needs_new_epoch(from, to, diff) { self.epoch.next() } else { self.epoch };
        let (from, to) = (self.layout(from, self.epoch), self.layout(to, epoch));
        if let Some(ours) = self.ours {
            let ops = delta::update(from, to, diff, false);
            if let Sent::Committed(applied) = self.transact(&ops, Some(ours))? {
                self.epoch = epoch;
                return Ok(applied);
            }
        }
        // Somebody has changed something since, most likely not our table.
        let ops = delta::update(from, to, diff, true);
        let applied = self.look_and_change(|_| Ok(Some(ops.clone())))?;
        self.epoch = epoch;
        Ok(applied)
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.delete_table().map(|_| ())
    }
}

/// What [`Backend::replace`] would write, as a value.
pub fn ruleset(program: &Program, options: NftOptions) -> Ruleset {
    Layout { program, deny: options.deny, epoch: Epoch::A }.ruleset()
}

/// What [`Backend::replace`] would write, as a script for `nft -f`.
pub fn render(program: &Program, options: NftOptions) -> String {
    ruleset(program, options).to_string()
}
