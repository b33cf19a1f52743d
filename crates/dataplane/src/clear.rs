//! Removes what packet filters hold that are not in use (any more).
//!
//! While two hold policies both are in force: the kernel shows a packet to each, and it passes only if both let it. So a
//! switch from one to the other first brings the new one into force and then clears the old one. In between less passes than
//! either would let pass, never more.

use std::fmt;

use crate::backend::ApplyError;
use crate::iptables::{Variant, clear_variants_but, grace};
use crate::nft::{NftBackend, NftOptions};

/// A packet filter of the kernel that can hold policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketFilter {
    /// The table of the nftables backend.
    Nftables,
    /// The chains of the iptables backend, and the sets that they ask.
    Iptables(Variant),
}

impl fmt::Display for PacketFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PacketFilter::Nftables => f.write_str("nftables"),
            PacketFilter::Iptables(variant) => write!(f, "iptables-{variant}"),
        }
    }
}

/// What [`clear_all_but`] did.
#[derive(Debug, Default)]
pub struct Cleared {
    /// Where there was something of ours.
    pub removed: Vec<PacketFilter>,
    /// Where nobody could look because its tools are not installed, and why.
    pub unseen: Vec<(PacketFilter, ApplyError)>,
}

/// Removes everything of ours from the packet filters of the calling thread's network namespace, except from the one `in_use`,
/// which must be in force.
///
/// # Errors
/// A packet filter refuses, or cannot be asked. The others have been cleared; it can be called again.
pub fn clear_all_but(in_use: Option<PacketFilter>) -> Result<Cleared, ApplyError> {
    let mut cleared = Cleared::default();
    // A packet that came to the hook before the new rules were there has seen only the old ones, and may be in them still.
    if in_use.is_some() {
        grace();
    }
    let nftables = match in_use {
        Some(PacketFilter::Nftables) => Ok(()),
        _ => clear_nftables(&mut cleared),
    };
    let variant = if let Some(PacketFilter::Iptables(variant)) = in_use { Some(variant) } else { None };
    let iptables = clear_variants_but(variant)?;
    cleared.removed.extend(iptables.removed.into_iter().map(PacketFilter::Iptables));
    let unseen = iptables.unseen.into_iter().map(|(variant, error)| (PacketFilter::Iptables(variant), error));
    cleared.unseen.extend(unseen);
    nftables.map(|()| cleared)
}

fn clear_nftables(cleared: &mut Cleared) -> Result<(), ApplyError> {
    match NftBackend::new(NftOptions::default()).and_then(|mut backend| backend.delete_table()) {
        Ok(true) => cleared.removed.push(PacketFilter::Nftables),
        Ok(false) => {}
        // What kernels say that have no nftables.
        Err(ApplyError::Refused { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
