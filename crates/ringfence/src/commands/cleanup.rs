use std::io::ErrorKind;
use std::process::ExitCode;

use ringfence_dataplane::iptables::{IptablesBackend, IptablesOptions};
use ringfence_dataplane::{ApplyError, Backend as _, NftBackend, NftOptions};

use crate::args::BackendName;
use crate::output::Failure;

pub(super) fn run(backend: BackendName) -> Result<ExitCode, Failure> {
    let cleaned = match backend {
        BackendName::Nftables => NftBackend::new(NftOptions::default()).and_then(|mut backend| backend.cleanup()),
        BackendName::Iptables => {
            IptablesBackend::open(IptablesOptions::default()).and_then(|mut backend| backend.cleanup())
        }
    };
    match cleaned {
        Err(ApplyError::Refused { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            Err(Failure::NotPermitted)
        }
        cleaned => Ok(cleaned.map(|()| ExitCode::SUCCESS)?),
    }
}
