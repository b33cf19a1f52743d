//! What the command line says about the packet filter, as options of the backends and of what is compiled for them.

use ringfence_compile::UnknownPods;
use ringfence_dataplane::iptables::{IptablesOptions, Variant};
use ringfence_dataplane::{DenyAction, NftOptions};

use crate::args::{BackendName, DenyName, Filter, UnknownPodsName, VariantName};
use crate::output::Failure;

impl Filter {
    /// Refuses options that the chosen backend has no use for: whoever writes them expects them to count.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let useless = [
            ("--iptables", self.iptables != VariantName::Auto),
            ("--mark", self.mark.is_some()),
            ("--pod-ip-range", !self.pod_ip_range.is_empty()),
        ];
        match useless.into_iter().find(|(_, given)| *given && self.backend == BackendName::Nftables) {
            Some((option, _)) => Err(Failure::NotForBackend(option)),
            None => Ok(()),
        }
    }

    pub(crate) fn nft(&self) -> NftOptions {
        NftOptions { deny: self.deny() }
    }

    pub(crate) fn iptables(&self) -> IptablesOptions {
        IptablesOptions {
            variant: match self.iptables {
                VariantName::Auto => None,
                VariantName::Nft => Some(Variant::Nft),
                VariantName::Legacy => Some(Variant::Legacy),
            },
            deny: self.deny(),
            mark: self.mark.unwrap_or_default(),
            pod_ip_range: self.pod_ip_range.clone(),
        }
    }

    fn deny(&self) -> DenyAction {
        match self.deny_action {
            DenyName::Reject => DenyAction::Reject,
            DenyName::Drop => DenyAction::Drop,
        }
    }
}

impl From<UnknownPodsName> for UnknownPods {
    fn from(name: UnknownPodsName) -> UnknownPods {
        match name {
            UnknownPodsName::Deny => UnknownPods::Deny,
            UnknownPodsName::Allow => UnknownPods::Allow,
        }
    }
}
