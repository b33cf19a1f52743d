//! Takes stock of our table in the kernel.
//!
//! Of everything else not even the names are kept, and of our own objects nothing but names and hooks is read: what
//! another version of ringfence or of the kernel put there cannot make this fail.

use super::attribute::{attributes_of, chain, generation, hook, set, table};
use super::name::{Hook, TABLE};
use super::socket::NftSocket;
use super::transaction::{Inventory, TableState};
use crate::backend::ApplyError;

/// The number of the last transaction in this network namespace, anybody's.
pub(super) fn last_transaction(socket: &mut NftSocket) -> Result<Option<u32>, ApplyError> {
    let objects = socket.get(libc::NFT_MSG_GETGEN)?;
    Ok(objects.iter().find_map(|object| number(object, generation::ID)))
}

/// What is in our table. `None` when something changed while it was listed.
pub(super) fn inventory(socket: &mut NftSocket) -> Result<Option<Inventory>, ApplyError> {
    let Some(tables) = socket.list(libc::NFT_MSG_GETTABLE)? else {
        return Ok(None);
    };
    let Some(chains) = socket.list(libc::NFT_MSG_GETCHAIN)? else {
        return Ok(None);
    };
    let Some(sets) = socket.list(libc::NFT_MSG_GETSET)? else {
        return Ok(None);
    };
    let ours = |object: &Vec<u8>, attribute| is_text(object, attribute, TABLE);
    let chains: Vec<&Vec<u8>> = chains.iter().filter(|chain| ours(chain, chain::TABLE)).collect();
    let (good, others): (Vec<_>, Vec<_>) = chains.into_iter().partition(|chain| is_good_base_chain(chain));
    let names = |chains: Vec<&Vec<u8>>| chains.into_iter().filter_map(|chain| text(chain, chain::NAME)).collect();
    let table = tables.iter().find(|table| ours(table, table::NAME));
    Ok(Some(Inventory {
        table: match table.map(|table| number(table, table::FLAGS).unwrap_or_default()) {
            None => TableState::Absent,
            Some(0) => TableState::Good,
            Some(_) => TableState::Flagged,
        },
        base_chains: names(good),
        chains: names(others),
        sets: sets
            .iter()
            .filter(|set| ours(set, set::TABLE) && !is_anonymous(set))
            .filter_map(|set| text(set, set::NAME))
            .collect(),
    }))
}

pub(super) fn is_good_base_chain(chain: &[u8]) -> bool {
    let Some(hook) = value(chain, chain::HOOK) else {
        return false;
    };
    Hook::ALL.into_iter().any(|wanted| {
        is_text(chain, chain::NAME, wanted.as_str())
            && is_text(chain, chain::TYPE, wanted.chain_type())
            && number(hook, hook::HOOKNUM) == Some(wanted.number())
            && number(hook, hook::PRIORITY) == Some(wanted.priority().cast_unsigned())
    })
}

/// Anonymous sets belong to a rule and go with it.
pub(super) fn is_anonymous(set: &[u8]) -> bool {
    /// `NFT_SET_ANONYMOUS`.
    const ANONYMOUS: u32 = 1;
    number(set, set::FLAGS).is_some_and(|flags| flags & ANONYMOUS != 0)
}

pub(super) fn value(object: &[u8], kind: u16) -> Option<&[u8]> {
    attributes_of(object).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// Numbers are in network byte order.
pub(super) fn number(object: &[u8], kind: u16) -> Option<u32> {
    Some(u32::from_be_bytes(value(object, kind)?.try_into().ok()?))
}

/// Texts end with a zero byte.
pub(super) fn text(object: &[u8], kind: u16) -> Option<String> {
    let value = value(object, kind)?;
    String::from_utf8(value.strip_suffix(&[0]).unwrap_or(value).to_vec()).ok()
}

pub(super) fn is_text(object: &[u8], kind: u16, wanted: &str) -> bool {
    value(object, kind).is_some_and(|value| value.strip_suffix(&[0]) == Some(wanted.as_bytes()))
}
