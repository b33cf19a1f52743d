//! The nftables backend: writes programs into the kernel's packet filter over netlink.
//!
//! ```text
//! Program ─► layout ─► Ruleset ─┬─► text                     what a program looks like in nft's language
//!                               └─► transaction::replace ─┐
//! ProgramDiff ─► delta::update ───────────────────────────┴─► Op ─► netlink, expression ─► socket ─► kernel
//! ```
//!
//! Everything of ours is in one table, `inet ringfence`, and nothing outside it is ever read or written.
//!
//! That others leave the table alone is seen in three ways. The kernel numbers transactions: while the last is ours, nobody
//! has written. It announces them: what an *alarm* hears of others is about our table, and then the table is written anew
//! at once, or it is not, and then that was all. And where neither helps (something was not heard; the administrator asks
//! for certainty from time to time), a *survey* reads the table back and compares by meaning.

mod alarm;
mod attribute;
mod delta;
mod element;
mod expression;
mod inventory;
mod layout;
mod name;
mod netlink;
mod reach;
mod ruleset;
mod shapes;
mod socket;
mod standing;
mod survey;
mod text;
mod transaction;
mod userdata;

use std::os::fd::{AsFd as _, BorrowedFd};

use ringfence_compile::Program;

pub use name::{ChainName, Content, Epoch, Hook, Members, SetName, Shape, TABLE};
pub use ruleset::{DenyAction, Element, Field, Rule, Ruleset, Towards, comment};

use crate::backend::{Applied, ApplyError, Backend, Drift};
use crate::diff::ProgramDiff;
use alarm::Alarm;
use layout::Layout;
use netlink::Batch;
use shapes::Shapes;
use socket::{NftSocket, Sent};
use standing::{Standing, next};
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
    alarm: Alarm,
    /// Whether the table is as it was written.
    standing: Standing,
    /// The epoch that is in the kernel.
    epoch: Epoch,
    /// Of the program that is in the kernel.
    shapes: Shapes,
}

impl NftBackend {
    /// Opens the socket, in the network namespace of the calling thread. The kernel is not changed.
    ///
    /// # Errors
    /// There is no netlink to be had.
    pub fn new(options: NftOptions) -> Result<NftBackend, ApplyError> {
        Ok(NftBackend {
            options,
            socket: NftSocket::open()?,
            alarm: Alarm::open()?,
            standing: Standing::Unknown,
            epoch: Epoch::A,
            shapes: Shapes::default(),
        })
    }

    /// Where the kernel differs from what `program` says, whoever has written it; nothing if it does not. Looks, and changes
    /// nothing.
    ///
    /// # Errors
    /// The kernel cannot be asked, or others keep changing the packet filter meanwhile.
    pub fn difference(&mut self, program: &Program) -> Result<Option<Drift>, ApplyError> {
        for _ in 0..ATTEMPTS {
            let Some(last) = inventory::last_transaction(&mut self.socket)? else {
                continue;
            };
            if !self.socket.is_last(last)? {
                continue;
            }
            let found = survey::read(&mut self.socket)?;
            if !self.socket.is_last(last)? {
                continue;
            }
            // Which epoch it is says nothing about the program.
            let differs = |epoch| found.difference(&self.layout(program, epoch).ruleset());
            let [first, second] = Epoch::ALL.map(differs);
            return Ok(first.and(second).map(|what| Drift(format!("table inet {TABLE} is not as expected: {what}"))));
        }
        Err(ApplyError::Contended { attempts: ATTEMPTS })
    }

    fn layout<'a>(&self, program: &'a Program, epoch: Epoch) -> Layout<'a> {
        Layout { program, deny: self.options.deny, epoch, shapes: Shapes::of(program) }
    }

    /// Performs `ops` if no transaction came after the one numbered `last`; without a number, in any case. What is known of
    /// the table afterwards is what was known before.
    fn transact(&mut self, ops: &[Op], last: Option<u32>) -> Result<Sent, ApplyError> {
        if ops.is_empty() {
            return Ok(Sent::Committed(Applied::default()));
        }
        let before = std::mem::replace(&mut self.standing, Standing::Unknown);
        self.alarm.leave()?;
        let sent = self.socket.transact(&Batch::new(ops, last, self.socket.sequence()));
        self.alarm.join()?;
        let sent = sent?;
        match (&sent, before, last) {
            (Sent::Committed(_), Standing::Intact { last: known, on_trust }, Some(last)) if known == last => {
                self.wrote(Standing::Intact { last: next(last), on_trust });
            }
            (Sent::Committed(_), Standing::Intact { .. }, _) => {}
            (_, before, _) => {
                self.standing = before;
                self.listen();
            }
        }
        Ok(sent)
    }

    /// We have just written, and that makes the table this. What was heard before is over. What came between our writing and
    /// our listening again, nobody heard.
    fn wrote(&mut self, standing: Standing) {
        self.alarm.forget();
        self.standing = standing;
        self.listen();
    }

    /// Takes note of what was heard, and of what cannot have been heard.
    fn listen(&mut self) {
        let number = inventory::last_transaction(&mut self.socket).ok().flatten();
        self.heard();
        if let Standing::Intact { last, .. } = self.standing
            && number != Some(last)
        {
            self.standing = Standing::Unknown;
        }
    }

    /// Takes note of what was heard.
    fn heard(&mut self) {
        for news in self.alarm.news() {
            self.standing.follow(news);
        }
    }

    /// Looks at the kernel and changes it, as one step: if anybody changes the packet filter in between, again. Gives the
    /// number of the transaction, too.
    fn look_and_change(
        &mut self,
        mut plan: impl FnMut(&mut NftSocket) -> Result<Option<Vec<Op>>, ApplyError>,
    ) -> Result<(Applied, Option<u32>), ApplyError> {
        for _ in 0..ATTEMPTS {
            let last = inventory::last_transaction(&mut self.socket)?;
            let Some(ops) = plan(&mut self.socket)? else {
                continue;
            };
            match self.transact(&ops, last)? {
                Sent::Committed(applied) => return Ok((applied, last.map(next))),
                Sent::Outdated => {}
            }
        }
        Err(ApplyError::Contended { attempts: ATTEMPTS })
    }

    /// Deletes our table. Whether there was one.
    pub(crate) fn delete_table(&mut self) -> Result<bool, ApplyError> {
        let (applied, _) = self.look_and_change(|socket| {
            let present = inventory::inventory(socket)?;
            Ok(present.map(|present| match present.table {
                TableState::Absent => Vec::new(),
                TableState::Good | TableState::Flagged => vec![Op::DeleteTable],
            }))
        })?;
        Ok(applied.messages > 0)
    }

    /// Reads the table back. What is wrong with it, if something is; afterwards it is known to be intact, if nothing is.
    ///
    /// What others do to other tables meanwhile does not disturb, as far as it is heard.
    fn examine(&mut self, program: &Program) -> Result<Option<Drift>, ApplyError> {
        let expected = self.layout(program, self.epoch).ruleset();
        let mut differed = false;
        for _ in 0..ATTEMPTS {
            self.standing = Standing::Unknown;
            let Some(last) = inventory::last_transaction(&mut self.socket)? else {
                continue;
            };
            if !self.socket.is_last(last)? {
                continue;
            }
            // All that was announced until now came before.
            self.alarm.forget();
            let found = survey::read(&mut self.socket)?;
            let disturbed = !self.socket.is_last(last)?;
            self.standing = Standing::sure(last);
            self.heard();
            match &self.standing {
                Standing::Tampered(harm) => return Ok(Some(Drift(harm.clone()))),
                Standing::Unknown => continue,
                Standing::Intact { last: now, .. } if disturbed && *now == last => continue,
                Standing::Intact { .. } => {}
            }
            let Some(difference) = found.difference(&expected) else {
                return Ok(None);
            };
            // The kernel lists a set part by part. When it rearranges the set meanwhile, parts are missing or doubled.
            if differed {
                self.standing = Standing::Unknown;
                return Ok(Some(Drift(format!("table inet {TABLE} was not as written: {difference}"))));
            }
            differed = true;
        }
        self.standing = Standing::Unknown;
        Err(ApplyError::Contended { attempts: ATTEMPTS })
    }

    fn mend(&mut self, program: &Program, drift: Option<Drift>) -> Result<Option<Drift>, ApplyError> {
        if drift.is_some() {
            self.replace(program)?;
        }
        Ok(drift)
    }
}

impl Backend for NftBackend {
    type Demand = Program;

    fn name(&self) -> &'static str {
        "nftables"
    }

    fn replace(&mut self, program: &Program) -> Result<Applied, ApplyError> {
        let layout = self.layout(program, Epoch::A);
        let (applied, number) = self.look_and_change(|socket| {
            let present = inventory::inventory(socket)?;
            Ok(present.map(|present| transaction::replace(layout.ruleset(), present)))
        })?;
        (self.epoch, self.shapes) = (Epoch::A, layout.shapes);
        self.wrote(number.map_or(Standing::Unknown, Standing::sure));
        Ok(applied)
    }

    fn update(&mut self, from: &Program, to: &Program, diff: &ProgramDiff) -> Result<Applied, ApplyError> {
        let epoch = if delta::needs_new_epoch(from, to, diff) { self.epoch.next() } else { self.epoch };
        let (deny, shapes) = (self.options.deny, self.shapes.after(diff));
        let from = Layout { program: from, deny, epoch: self.epoch, shapes: self.shapes };
        let to = Layout { program: to, deny, epoch, shapes };
        // While nobody else writes to our table, the difference is enough. Others may write to theirs at any moment.
        let ops = delta::update(from, to, diff, false);
        for _ in 0..ATTEMPTS {
            let Standing::Intact { last, .. } = self.standing else {
                break;
            };
            if let Sent::Committed(applied) = self.transact(&ops, Some(last))? {
                (self.epoch, self.shapes) = (epoch, shapes);
                return Ok(applied);
            }
        }
        // Somebody may have changed something of ours. Rules are what matters most; the rest is for `heed`.
        let ops = delta::update(from, to, diff, true);
        let (applied, _) = self.look_and_change(|_| Ok(Some(ops.clone())))?;
        (self.epoch, self.shapes) = (epoch, shapes);
        Ok(applied)
    }

    /// A full load, at once, when others are heard to have changed our table: that is never slower than to look for the
    /// difference first, and leaves nothing to misjudge.
    fn heed(&mut self, program: &Program) -> Result<Option<Drift>, ApplyError> {
        self.heard();
        let drift = match &self.standing {
            Standing::Intact { .. } => None,
            Standing::Tampered(harm) => Some(Drift(harm.clone())),
            Standing::Unknown => self.examine(program)?,
        };
        self.mend(program, drift)
    }

    fn repair(&mut self, program: &Program) -> Result<Option<Drift>, ApplyError> {
        self.heard();
        let drift = match &self.standing {
            Standing::Tampered(harm) => Some(Drift(harm.clone())),
            Standing::Intact { last, on_trust: false }
                if inventory::last_transaction(&mut self.socket)? == Some(*last) =>
            {
                None
            }
            Standing::Intact { .. } | Standing::Unknown => self.examine(program)?,
        };
        self.mend(program, drift)
    }

    fn alarm(&self) -> Option<BorrowedFd<'_>> {
        Some(self.alarm.as_fd())
    }

    fn cleanup(&mut self) -> Result<(), ApplyError> {
        self.delete_table()?;
        self.standing = Standing::Unknown;
        Ok(())
    }
}

/// What [`Backend::replace`] would write, as a value.
pub fn ruleset(program: &Program, options: NftOptions) -> Ruleset {
    Layout { program, deny: options.deny, epoch: Epoch::A, shapes: Shapes::of(program) }.ruleset()
}

/// What [`Backend::replace`] would write, as a script for `nft -f`.
pub fn render(program: &Program, options: NftOptions) -> String {
    ruleset(program, options).to_string()
}
