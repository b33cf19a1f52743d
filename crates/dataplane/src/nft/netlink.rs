//! Transactions as netlink messages.

use libc::{NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END, NFNL_SUBSYS_NFTABLES, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};
use libc::{NLM_F_EXCL, NLM_F_REQUEST};

use super::attribute::{Attributes, LIST_ELEMENT, batch, chain, elements, hook, rule, set, set_desc, set_field, table};
use super::element;
use super::expression::{self, Verdict};
use super::name::{ChainName, SetName, TABLE};
use super::ruleset::{Element, Rule};
use super::text::TABLE_COMMENT;
use super::transaction::Op;
use super::userdata;

/// `NFPROTO_INET` of `linux/netfilter.h`.
pub(super) const FAMILY_INET: u8 = 1;
/// The lengths of `struct nlmsghdr` and `struct nfgenmsg`.
pub(super) const HEADER: usize = 16;
pub(super) const GENERIC_HEADER: usize = 4;
/// A list of elements is one attribute, whose length is 16 bits.
const ELEMENTS_PER_MESSAGE_BYTES: usize = 60_000;

/// The messages of one transaction, ready to be sent.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    bytes: Vec<u8>,
    ops: &'a [Op],
    /// Where each message starts, and the operation it belongs to. The first and the last message are the brackets.
    messages: Vec<(usize, Option<usize>)>,
    /// Where each element starts, in bytes and as (operation, element).
    elements: Vec<(usize, usize, usize)>,
    first_sequence: u32,
    sets: u32,
    added: usize,
    removed: usize,
}

impl<'a> Batch<'a> {
    /// Encodes a transaction. The messages are numbered from `first_sequence`.
    ///
    /// With a `generation`, the kernel performs it only if no other transaction came after that one.
    pub(super) fn new(ops: &'a [Op], generation: Option<u32>, first_sequence: u32) -> Batch<'a> {
        let mut batch = Batch {
            bytes: Vec::new(),
            ops,
            messages: Vec::new(),
            elements: Vec::new(),
            first_sequence,
            sets: 0,
            added: 0,
            removed: 0,
        };
        batch.bracket(NFNL_MSG_BATCH_BEGIN, generation);
        for (index, op) in ops.iter().enumerate() {
            batch.op(index, op);
        }
        batch.acknowledge_last();
        batch.bracket(NFNL_MSG_BATCH_END, None);
        batch
    }

    /// The messages.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it has no operation.
    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// How many there are.
    pub(super) fn messages(&self) -> usize {
        self.messages.len()
    }

    /// How many elements it adds and removes.
    pub(super) fn elements(&self) -> (usize, usize) {
        (self.added, self.removed)
    }

    /// The number of the first message after this batch.
    pub(super) fn next_sequence(&self) -> u32 {
        self.first_sequence.wrapping_add(u32::try_from(self.messages.len()).unwrap_or(u32::MAX))
    }

    /// Whether the message with this number is the one the kernel acknowledges.
    pub(super) fn is_acknowledged(&self, sequence: u32) -> bool {
        self.index(sequence).is_some_and(|index| index + 2 == self.messages.len())
    }

    /// What the message with this number does, for people. `offset` is where in the message the kernel saw the fault.
    pub(super) fn describe(&self, sequence: u32, offset: Option<usize>) -> Option<String> {
        let (start, op) = *self.messages.get(self.index(sequence)?)?;
        let Some(op) = op else {
            return Some("the transaction as a whole".to_owned());
        };
        let fault = start + offset.unwrap_or_default();
        let nearest = self.elements.partition_point(|(position, _, _)| *position <= fault);
        match nearest.checked_sub(1).and_then(|nearest| self.elements.get(nearest)) {
            Some((position, owner, element)) if *owner == op && *position >= start => {
                Some(self.ops.get(op)?.describe_element(*element))
            }
            _ => Some(self.ops.get(op)?.to_string()),
        }
    }

    fn index(&self, sequence: u32) -> Option<usize> {
        let index = usize::try_from(sequence.wrapping_sub(self.first_sequence)).ok()?;
        (index < self.messages.len()).then_some(index)
    }

    fn bracket(&mut self, kind: i32, generation: Option<u32>) {
        self.begin(None, kind, 0, 0, u16::try_from(NFNL_SUBSYS_NFTABLES).unwrap_or_default());
        if let Some(generation) = generation {
            Attributes(&mut self.bytes).number(batch::GENID, generation);
        }
        self.end();
    }

    fn op(&mut self, index: usize, op: &'a Op) {
        match op {
            Op::EnsureTable => {
                self.nft(index, libc::NFT_MSG_NEWTABLE, NLM_F_CREATE);
                Attributes(&mut self.bytes)
                    .text(table::NAME, TABLE)
                    .number(table::FLAGS, 0)
                    .bytes(table::USERDATA, &userdata::comment(userdata::TABLE_COMMENT, TABLE_COMMENT));
            }
            Op::DeleteTable => {
                self.nft(index, libc::NFT_MSG_DELTABLE, 0);
                Attributes(&mut self.bytes).text(table::NAME, TABLE);
            }
            Op::FlushTable => {
                self.nft(index, libc::NFT_MSG_DELRULE, 0);
                Attributes(&mut self.bytes).text(rule::TABLE, TABLE);
            }
            Op::EnsureBaseChain(chain) => self.add_chain(index, *chain, NLM_F_CREATE),
            Op::AddChain(chain) => self.add_chain(index, *chain, NLM_F_CREATE | NLM_F_EXCL),
            Op::FlushChain(name) => {
                self.nft(index, libc::NFT_MSG_DELRULE, 0);
                Attributes(&mut self.bytes).text(rule::TABLE, TABLE).text(rule::CHAIN, &name.to_string());
            }
            Op::DeleteChain(name) => {
                self.nft(index, libc::NFT_MSG_DELCHAIN, 0);
                Attributes(&mut self.bytes).text(chain::TABLE, TABLE).text(chain::NAME, name);
            }
            Op::AddRule(chain, rule) => self.add_rule(index, *chain, rule),
            Op::AddSet(set) => self.add_set(index, set),
            Op::FlushSet(name) => {
                self.nft(index, libc::NFT_MSG_DELSETELEM, 0);
                Attributes(&mut self.bytes).text(elements::TABLE, TABLE).text(elements::SET, name);
            }
            Op::DeleteSet(name) => {
                self.nft(index, libc::NFT_MSG_DELSET, 0);
                Attributes(&mut self.bytes).text(set::TABLE, TABLE).text(set::NAME, name);
            }
            Op::AddElements(set, elements) => {
                self.added += elements.len();
                self.all_elements(index, libc::NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, set, elements);
                return;
            }
            Op::DeleteElements(set, elements) => {
                self.removed += elements.len();
                self.all_elements(index, libc::NFT_MSG_DELSETELEM, 0, set, elements);
                return;
            }
        }
        self.end();
    }

    fn add_chain(&mut self, index: usize, name: ChainName, flags: i32) {
        self.nft(index, libc::NFT_MSG_NEWCHAIN, flags);
        let mut attributes = Attributes(&mut self.bytes);
        attributes.text(chain::TABLE, TABLE).text(chain::NAME, &name.to_string());
        if let ChainName::Base(wanted) = name {
            attributes.text(chain::TYPE, wanted.chain_type()).number(chain::POLICY, Verdict::Accept as u32).nest(
                chain::HOOK,
                |attributes| {
                    attributes
                        .number(hook::HOOKNUM, wanted.number())
                        .bytes(hook::PRIORITY, &wanted.priority().to_be_bytes());
                },
            );
        }
        attributes.bytes(chain::USERDATA, &userdata::comment(userdata::CHAIN_COMMENT, &name.comment()));
    }

    fn add_rule(&mut self, index: usize, chain: ChainName, content: &Rule) {
        self.nft(index, libc::NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
        let mut attributes = Attributes(&mut self.bytes);
        attributes
            .text(rule::TABLE, TABLE)
            .text(rule::CHAIN, &chain.to_string())
            .nest(rule::EXPRESSIONS, |list| expression::encode(content, list));
        if let Some(comment) = content.comment() {
            attributes.bytes(rule::USERDATA, &userdata::comment(userdata::RULE_COMMENT, &comment));
        }
    }

    fn add_set(&mut self, index: usize, name: &SetName) {
        self.nft(index, libc::NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL);
        self.sets += 1;
        let mut attributes = Attributes(&mut self.bytes);
        attributes.text(set::TABLE, TABLE).text(set::NAME, &name.to_string());
        declare_set(&mut attributes, name);
        if name.is_map() {
            attributes.number(set::DATA_LEN, 0);
        }
        attributes.number(set::ID, self.sets);
        if name.has_ranges_of_several_fields() {
            attributes.nest(set::DESC, |desc| {
                desc.nest(set_desc::CONCAT, |list| {
                    for field in name.fields() {
                        list.nest(LIST_ELEMENT, |entry| {
                            entry.number(set_field::LEN, field.length());
                        });
                    }
                });
            });
        }
        let mut about = Vec::new();
        if name.fields().len() == 1 {
            about.extend(userdata::entry(userdata::SET_KEY_BYTE_ORDER, &userdata::BIG_ENDIAN.to_ne_bytes()));
        }
        about.extend(userdata::comment(userdata::SET_COMMENT, &name.comment()));
        attributes.bytes(set::USERDATA, &about);
    }

    /// As many messages as it takes.
    fn all_elements(&mut self, op: usize, kind: i32, flags: i32, name: &SetName, content: &[Element]) {
        let with_data = kind == libc::NFT_MSG_NEWSETELEM;
        let mut rest = content.iter().enumerate().peekable();
        while rest.peek().is_some() {
            self.nft(op, kind, flags);
            let marks = &mut self.elements;
            let mut attributes = Attributes(&mut self.bytes);
            let start = attributes.position();
            attributes.text(elements::TABLE, TABLE).text(elements::SET, &name.to_string());
            attributes.nest(elements::ELEMENTS, |list| {
                while list.position() - start < ELEMENTS_PER_MESSAGE_BYTES
                    && let Some((index, content)) = rest.next()
                {
                    marks.push((list.position(), op, index));
                    element::encode(list, name, content, with_data);
                }
            });
            self.end();
        }
    }

    fn nft(&mut self, op: usize, kind: i32, flags: i32) {
        self.begin(Some(op), NFNL_SUBSYS_NFTABLES << 8 | kind, flags, FAMILY_INET, 0);
    }

    fn begin(&mut self, op: Option<usize>, kind: i32, flags: i32, family: u8, resource: u16) {
        let sequence = self.next_sequence();
        self.messages.push((self.bytes.len(), op));
        message_header(&mut self.bytes, kind, flags, sequence, family, resource);
    }

    fn end(&mut self) {
        if let Some((start, _)) = self.messages.last() {
            finish_message(&mut self.bytes, *start);
        }
    }

    /// Without any acknowledgement, silence would mean success; and silence is also what a lost answer sounds like.
    fn acknowledge_last(&mut self) {
        if let Some((start, Some(_))) = self.messages.last() {
            let flags = start + 6;
            let [low, high] = u16::try_from(NLM_F_REQUEST | NLM_F_ACK).unwrap_or_default().to_ne_bytes();
            self.bytes[flags] |= low;
            self.bytes[flags + 1] |= high;
        }
    }
}

/// Appends what makes a set the kind of set it is.
pub(super) fn declare_set(attributes: &mut Attributes<'_>, name: &SetName) {
    /// The type of verdicts, `NFT_DATA_VERDICT`.
    const VERDICT: u32 = 0xffff_ff00;
    /// `enum nft_set_flags`.
    const INTERVAL: u32 = 0x4;
    const MAP: u32 = 0x8;
    const CONCAT: u32 = 0x80;
    let fields = name.fields();
    let flag = |condition, flag| if condition { flag } else { 0 };
    attributes
        .number(
            set::FLAGS,
            flag(name.is_map(), MAP)
                | flag(name.is_interval(), INTERVAL)
                | flag(name.has_ranges_of_several_fields(), CONCAT),
        )
        // nft numbers the type of several fields with six bits for each.
        .number(set::KEY_TYPE, fields.iter().fold(0, |number, field| number << 6 | field.type_number()))
        .number(
            set::KEY_LEN,
            match fields {
                [field] => field.length(),
                fields => fields.iter().map(|field| field.padded()).sum(),
            },
        );
    if name.is_map() {
        attributes.number(set::DATA_TYPE, VERDICT);
    }
}

/// Appends a netlink header, its length to be filled in by [`finish_message`], and an nfnetlink header.
pub(super) fn message_header(bytes: &mut Vec<u8>, kind: i32, flags: i32, sequence: u32, family: u8, resource: u16) {
    let short = |number: i32| u16::try_from(number).unwrap_or_default().to_ne_bytes();
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(short(kind));
    bytes.extend(short(flags | NLM_F_REQUEST));
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
}

/// Pads the message that starts at `start` and ends where the bytes end, and writes its length.
pub(super) fn finish_message(bytes: &mut Vec<u8>, start: usize) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
}
