//! Choices of the administrator.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;

use super::tools::Tools;
use crate::backend::ApplyError;
use crate::nft::DenyAction;

/// One of the two implementations of iptables, which do not see each other's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// Rules in nftables.
    Nft,
    /// Rules in the older tables of the kernel.
    Legacy,
}

impl Variant {
    /// Both.
    pub const ALL: [Variant; 2] = [Variant::Nft, Variant::Legacy];

    /// The other one.
    pub fn other(self) -> Variant {
        match self {
            Variant::Nft => Variant::Legacy,
            Variant::Legacy => Variant::Nft,
        }
    }

    /// The one that the kubelet and kube-proxy of this host use, by the chains they leave as a hint; else the one with
    /// more rules; else the one behind the name `iptables`.
    ///
    /// # Errors
    /// Neither is installed.
    pub fn detect() -> Result<Variant, ApplyError> {
        Tools::detect()
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Variant::Nft => "nft",
            Variant::Legacy => "legacy",
        })
    }
}

/// The bit of a packet's mark that rules may use. It is clear when a packet has passed our chains in the filter table. Where
/// other nodes are believed, nobody else may use it: packets that come in lose it, and what comes from other nodes has it until
/// it is judged. What goes to the node itself keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(u32);

/// A mark that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMark {
    /// None, or several.
    #[error("a mark is one bit of 32, such as 0x1000")]
    NotOneBit,
    /// Clearing it would undo what Kubernetes has decided about a packet.
    #[error("0x4000 and 0x8000 are marks of kubelet and kube-proxy: choose another bit")]
    OfKubernetes,
}

impl Mark {
    /// A mark, if exactly one bit is set and it is none of those that Kubernetes uses.
    ///
    /// # Errors
    /// It is not.
    pub fn new(bits: u32) -> Result<Mark, InvalidMark> {
        match bits {
            0x4000 | 0x8000 => Err(InvalidMark::OfKubernetes),
            bits if bits.is_power_of_two() => Ok(Mark(bits)),
            _ => Err(InvalidMark::NotOneBit),
        }
    }

    /// The mark with this bit set and all others clear.
    pub fn bits(self) -> u32 {
        self.0
    }
}

impl Default for Mark {
    /// Kubernetes uses 0x4000 and 0x8000, the `portmap` plugin of CNI 0x2000.
    fn default() -> Mark {
        Mark(0x1000)
    }
}

/// As `0x1000` or `4096`.
impl FromStr for Mark {
    type Err = InvalidMark;

    fn from_str(text: &str) -> Result<Mark, InvalidMark> {
        let bits = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(digits) => u32::from_str_radix(digits, 16),
            None => text.parse(),
        };
        Mark::new(bits.map_err(|_| InvalidMark::NotOneBit)?)
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Choices of the administrator.
#[derive(Clone, Debug, Default)]
pub struct IptablesOptions {
    /// Which iptables; nothing for [`Variant::detect`].
    pub variant: Option<Variant>,
    /// What to do with packets that are refused.
    pub deny: DenyAction,
    /// The mark bit to use.
    pub mark: Mark,
    /// The addresses that policies are about: traffic with others is let through. A family of which no network is given is
    /// about all its addresses.
    pub pod_ip_range: Vec<IpNet>,
}
