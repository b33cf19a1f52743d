//! Comments, as nft stores them with its objects: types as libnftnl numbers them (`libnftnl/udata.h`), and entries of
//! type, length, value. The kernel keeps them without reading them.

pub(super) const TABLE_COMMENT: u8 = 0;
pub(super) const CHAIN_COMMENT: u8 = 0;
pub(super) const RULE_COMMENT: u8 = 0;
pub(super) const SET_KEY_BYTE_ORDER: u8 = 0;
pub(super) const SET_COMMENT: u8 = 7;
pub(super) const ELEMENT_COMMENT: u8 = 0;
pub(super) const ELEMENT_FLAGS: u8 = 1;
/// `SET_ELEM_F_INTERVAL_OPEN` of nft: the range has no end because it reaches the last address.
pub(super) const INTERVAL_OPEN: u32 = 1;
/// `BYTEORDER_BIG_ENDIAN` of nft.
pub(super) const BIG_ENDIAN: u32 = 2;

/// One entry; `value` is shorter than 256 bytes.
pub(super) fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(value.len()).unwrap_or(u8::MAX);
    let mut entry = vec![kind, length];
    entry.extend_from_slice(&value[..usize::from(length)]);
    entry
}

/// A comment, which ends with a zero byte.
pub(super) fn comment(kind: u8, text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    entry(kind, &bytes)
}
