use std::error::Error as _;
use std::process::ExitCode;

use ringfence_dataplane::iptables::{IptablesBackend, IptablesOptions};
use ringfence_dataplane::{Backend as _, NftBackend, NftOptions, clear_all_but};

use crate::args::BackendName;
use crate::output::{Failure, Messages};

/// Without a backend, all that the host's tools can see.
pub(super) fn run(backend: Option<BackendName>, messages: &Messages) -> Result<ExitCode, Failure> {
    let cleaned = match backend {
        Some(BackendName::Nftables) => NftBackend::new(NftOptions::default()).and_then(|mut backend| backend.cleanup()),
        Some(BackendName::Iptables) => {
            IptablesBackend::open(IptablesOptions::default()).and_then(|mut backend| backend.cleanup())
        }
        None => clear_all_but(None).map(|cleared| {
            for (filter, error) in cleared.unseen {
                let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
                messages.note(&format!("nothing was removed from {filter}: {reason}"));
            }
        }),
    };
    match cleaned {
        Err(error) if error.is_not_permitted() => Err(Failure::NotPermitted),
        cleaned => Ok(cleaned.map(|()| ExitCode::SUCCESS)?),
    }
}
