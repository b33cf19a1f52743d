//! Netlink attributes: a writer, a reader, and the numbers of those this project uses.
//!
//! Written by hand because the numbers that netlink-bindings 0.3.5 generates for nftables are wrong in four places
//! (lookup, fib, the comment of a chain, the end of a range).

/// Appends attributes to a message. Numbers are written in network byte order, as nftables wants them.
pub(super) struct Attributes<'a>(pub(super) &'a mut Vec<u8>);

impl Attributes<'_> {
    /// A value as it is.
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let start = self.begin(kind);
        self.0.extend_from_slice(value);
        self.end(start)
    }

    /// A number of 32 bits.
    pub(super) fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A text, which ends with a zero byte.
    pub(super) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let start = self.begin(kind);
        self.0.extend_from_slice(value.as_bytes());
        self.0.push(0);
        self.end(start)
    }

    /// Attributes in an attribute.
    pub(super) fn nest(&mut self, kind: u16, content: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.begin(kind | NESTED);
        content(&mut Attributes(self.0));
        self.end(start)
    }

    /// How long the message is by now, in bytes.
    pub(super) fn position(&self) -> usize {
        self.0.len()
    }

    fn begin(&mut self, kind: u16) -> usize {
        let start = self.0.len();
        self.0.extend_from_slice(&[0, 0]);
        self.0.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    /// The length counts the header and not the padding. Nothing we write comes near the longest there can be; if it
    /// did, the kernel would find the message malformed and refuse it.
    fn end(&mut self, start: usize) -> &mut Self {
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// The attributes in `bytes`, by type and value; stops at what is no attribute.
pub(super) fn attributes_of(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    marked_attributes_of(bytes).map(|(kind, _, value)| (kind, value))
}

/// The same, and whether the attribute is marked to hold attributes. We mark all of those, the kernel does not.
pub(super) fn marked_attributes_of(bytes: &[u8]) -> impl Iterator<Item = (u16, bool, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & TYPE, kind & NESTED != 0, value))
    })
}

/// `NLA_F_NESTED` of `linux/netlink.h`.
const NESTED: u16 = 1 << 15;
/// `NLA_TYPE_MASK`: the upper two bits of a type are flags.
const TYPE: u16 = 0x3fff;

/// An element of a list (`NFTA_LIST_ELEM`).
pub(super) const LIST_ELEMENT: u16 = 1;

/// Declares attribute numbers under the names of `linux/netfilter/nf_tables.h`, without the prefix.
macro_rules! numbers {
    ($($(#[$about:meta])* $module:ident { $($name:ident = $number:literal),* $(,)? })*) => {
        $($(#[$about])* pub(super) mod $module { $(pub(crate) const $name: u16 = $number;)* })*
    };
}

numbers! {
    /// `enum nfnl_batch_attributes` of `linux/netfilter/nfnetlink.h`.
    batch { GENID = 1 }
    /// `enum nft_gen_attributes`.
    generation { ID = 1, PROC_PID = 2, PROC_NAME = 3 }
    /// `enum nft_table_attributes`.
    table { NAME = 1, FLAGS = 2, USERDATA = 6 }
    /// `enum nft_chain_attributes`.
    chain { TABLE = 1, NAME = 3, HOOK = 4, POLICY = 5, TYPE = 7, USERDATA = 12 }
    /// `enum nft_hook_attributes`.
    hook { HOOKNUM = 1, PRIORITY = 2 }
    /// `enum nft_rule_attributes`.
    rule { TABLE = 1, CHAIN = 2, EXPRESSIONS = 4, USERDATA = 7 }
    /// `enum nft_set_attributes`.
    set {
        TABLE = 1, NAME = 2, FLAGS = 3, KEY_TYPE = 4, KEY_LEN = 5, DATA_TYPE = 6, DATA_LEN = 7, DESC = 9, ID = 10,
        USERDATA = 13,
    }
    /// `enum nft_set_desc_attributes`.
    set_desc { CONCAT = 2 }
    /// `enum nft_set_field_attributes`.
    set_field { LEN = 1 }
    /// `enum nft_set_elem_list_attributes`.
    elements { TABLE = 1, SET = 2, ELEMENTS = 3 }
    /// `enum nft_set_elem_attributes`.
    element { KEY = 1, DATA = 2, FLAGS = 3, USERDATA = 6, KEY_END = 10 }
    /// `enum nft_data_attributes`.
    data { VALUE = 1, VERDICT = 2 }
    /// `enum nft_verdict_attributes`.
    verdict { CODE = 1, CHAIN = 2 }
    /// `enum nft_expr_attributes`.
    expression { NAME = 1, DATA = 2 }
    /// `enum nft_immediate_attributes`.
    immediate { DREG = 1, DATA = 2 }
    /// `enum nft_bitwise_attributes`.
    bitwise { SREG = 1, DREG = 2, LEN = 3, MASK = 4, XOR = 5 }
    /// `enum nft_cmp_attributes`.
    cmp { SREG = 1, OP = 2, DATA = 3 }
    /// `enum nft_lookup_attributes`.
    lookup { SET = 1, SREG = 2, DREG = 3, FLAGS = 5 }
    /// `enum nft_payload_attributes`.
    payload { DREG = 1, BASE = 2, OFFSET = 3, LEN = 4 }
    /// `enum nft_meta_attributes`.
    meta { DREG = 1, KEY = 2 }
    /// `enum nft_ct_attributes`.
    ct { DREG = 1, KEY = 2 }
    /// `enum nft_fib_attributes`.
    fib { DREG = 1, RESULT = 2, FLAGS = 3 }
    /// `enum nft_nat_attributes`.
    nat { TYPE = 1, FAMILY = 2, REG_ADDR_MIN = 3, REG_ADDR_MAX = 4, FLAGS = 7 }
    /// `enum nft_counter_attributes`.
    counter { BYTES = 1, PACKETS = 2 }
    /// `enum nft_reject_attributes`.
    reject { TYPE = 1, ICMP_CODE = 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut bytes = Vec::new();
        Attributes(&mut bytes).text(3, "abcd").number(7, 1).nest(9, |inner| {
            inner.bytes(1, &[5]);
        });
        let read: Vec<(u16, &[u8])> = attributes_of(&bytes).collect();
        assert_eq!(read, [(3, &b"abcd\0"[..]), (7, &[0, 0, 0, 1]), (9, &[5, 0, 1, 0, 5, 0, 0, 0])]);
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn garbage_ends_the_reading() {
        for garbage in [&[][..], &[1], &[3, 0, 0, 0], &[200, 0, 1, 0, 9]] {
            assert_eq!(attributes_of(garbage).count(), 0);
        }
    }
}
