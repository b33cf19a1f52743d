use std::io;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ringfence_agent::Agent;
use ringfence_agent::directory::Directory;
use ringfence_agent::health::{self, Pages};
use ringfence_agent::kube::{Announcer, ConnectError, KubeSource, Publisher};
use ringfence_agent::networks::NetworkFile;
use ringfence_agent::run::{self, Inputs, Networks, Numbered, OnExit, RunError, Settings, explained};
use ringfence_agent::server::{ControlSocket, ServerError};
use ringfence_agent::source::{CAPACITY, Event, SourceError};
use ringfence_agent::status::{About, Status};
use ringfence_agent::succession::Succession;
use ringfence_dataplane::{ApplyError, Backend, IptablesBackend, NftBackend, PacketFilter, clear_all_but};
use ringfence_model::Enforcement;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::args::{AgentOptions, BackendName, Listen, LogFormat, OnExitName, RunDirectory, SourceName};
use crate::output::Failure;

/// Why the agent did not start or has ended. Said in the log, where everything else about the agent is.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    #[error("--source: {0}")]
    Source(#[from] SourceError),
    #[error(transparent)]
    Kube(#[from] ConnectError),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("--run-dir: {0}")]
    Control(#[from] ServerError),
    #[error("cannot open the packet filter: {}", explained(.0))]
    Backend(ApplyError),
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    #[error(transparent)]
    Run(#[from] RunError),
}

pub(super) fn run(options: &AgentOptions) -> Result<ExitCode, Failure> {
    options.filter.check()?;
    log_to_standard_error(options.log_format);
    let ended = match options.filter.backend {
        BackendName::Nftables => {
            run_with(options, || NftBackend::new(options.filter.nft()), |_| PacketFilter::Nftables)
        }
        BackendName::Iptables => run_with(
            options,
            || IptablesBackend::open(options.filter.iptables()),
            |backend| PacketFilter::Iptables(backend.variant()),
        ),
    };
    match ended {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            tracing::error!("{error}");
            Ok(ExitCode::from(2))
        }
    }
}

fn run_with<B: Backend<Demand: Numbered>>(
    options: &AgentOptions,
    backend: impl FnOnce() -> Result<B, ApplyError>,
    packet_filter: impl FnOnce(&B) -> PacketFilter,
) -> Result<(), AgentError> {
    // All that can be wrong with the arguments is said before anything is changed.
    let source = Source::open(options)?;
    let mut listeners = Vec::new();
    for (listen, pages) in [(options.health_listen, Pages::Health), (options.metrics_listen, Pages::Metrics)] {
        if let Listen::At(address) = listen {
            let listener = TcpListener::bind(address).map_err(|source| AgentError::Listen { address, source })?;
            listeners.push((listener, pages));
        }
    }
    let (run_directory, mut socket) = match &options.run_dir {
        RunDirectory::Off => (None, None),
        RunDirectory::At(path) => (Some(path.clone()), Some(ControlSocket::open(path)?)),
    };
    let backend = backend().map_err(|error| match error.is_not_permitted() {
        true => AgentError::Run(RunError::NotPermitted(error)),
        false => AgentError::Backend(error),
    })?;
    let in_use = packet_filter(&backend);
    let settings = Settings {
        resync: Duration::from_secs(options.resync.into()),
        on_exit: match options.on_exit {
            OnExitName::Keep => OnExit::Keep,
            OnExitName::Cleanup => OnExit::Cleanup,
        },
        run_directory,
    };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let status = Arc::new(Status::new(About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: options.node.clone(),
            backend: backend.name().to_owned(),
            source: source.name(),
        }));
        health::serve(listeners, &status)?;
        let queries = socket.as_mut().map(|socket| socket.serve(&status)).transpose()?;
        let (sender, events) = tokio::sync::mpsc::channel(CAPACITY);
        let (troubles, told) = tokio::sync::mpsc::channel(CAPACITY);
        tracing::info!(node = options.node, source = source.name(), backend = backend.name(), "started");
        let source = source.announcing(options, &status);
        source.follow(sender, Publisher::new(options.node.as_str().into(), told))?;
        let mut agent = Agent::new(options.node.as_str().into(), backend)
            .with_unknown_pods(options.unknown_pods.into())
            .with_enforcement(options.reach.enforcement());
        agent.keep_sources_towards(&options.reach.no_masquerade_cidr);
        let succession = Succession::new(move || clear_others(in_use));
        let inputs = Inputs { events, queries, troubles: Some(troubles), networks: networks(options)? };
        run::run(agent, inputs, stop, settings, succession, &status).await?;
        Ok(())
    })
}

/// Where the state of the cluster comes from.
enum Source {
    Directory(Directory),
    Kube(Box<KubeSource>),
}

impl Source {
    fn open(options: &AgentOptions) -> Result<Source, AgentError> {
        Ok(match &options.source {
            Some(SourceName::Directory(path)) => Source::Directory(Directory::open(path)?),
            None => {
                let kube = KubeSource::open(options.kubeconfig.as_deref(), options.context.as_deref())?;
                Source::Kube(Box::new(kube.for_enforcing(options.reach.enforcement().at)))
            }
        })
    }

    fn name(&self) -> String {
        match self {
            Source::Directory(directory) => format!("dir:{}", directory.path().display()),
            Source::Kube(kube) => kube.server(),
        }
    }

    /// The same, which tells other nodes of this one. A folder has nobody to tell.
    fn announcing(self, options: &AgentOptions, status: &Arc<Status>) -> Source {
        match self {
            Source::Kube(kube) if options.publish_addresses => {
                let announcer = Announcer::new(
                    options.node.as_str().into(),
                    options.reach.enforcement(),
                    Box::new(ringfence_doctor::host_addresses),
                    Duration::from_secs(options.resync.into()),
                    status.clone(),
                );
                Source::Kube(Box::new(kube.announcing(announcer)))
            }
            source => {
                if options.reach.enforcement() != Enforcement::default() {
                    tracing::info!(
                        "other nodes are not told of this one: its Node needs the annotations \
                         ringfence.io/enforcement={} and, for its bridges and tunnels, ringfence.io/node-addresses",
                        options.reach.enforcement()
                    );
                }
                source
            }
        }
    }

    /// A folder has nobody to tell troubles to.
    fn follow(self, events: tokio::sync::mpsc::Sender<Event>, publisher: Publisher) -> io::Result<()> {
        match self {
            Source::Directory(directory) => directory.follow(events),
            Source::Kube(kube) => kube.follow(events, Some(publisher)),
        }
    }
}

/// Where networks of other clusters are named that are followed.
fn networks(options: &AgentOptions) -> io::Result<Option<Networks>> {
    let Some(path) = &options.no_masquerade_file else { return Ok(None) };
    let file = NetworkFile::new(path.clone());
    let first = file.read();
    let (sender, readings) = tokio::sync::mpsc::channel(1);
    file.follow(first.clone(), sender)?;
    Ok(Some(Networks { fixed: options.reach.no_masquerade_cidr.clone(), first, readings }))
}

/// Removes what agents have left that ran with another packet filter.
fn clear_others(in_use: PacketFilter) -> Result<(), ApplyError> {
    let cleared = clear_all_but(Some(in_use))?;
    for filter in cleared.removed {
        tracing::info!("removed what ringfence had put into {filter}: {in_use} has taken over");
    }
    for (filter, error) in cleared.unseen {
        tracing::debug!("if an agent has left anything in {filter}, it is still there: {}", explained(&error));
    }
    Ok(())
}

fn log_to_standard_error(format: LogFormat) {
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    // Libraries log each attempt that fails, without saying what it was about. The source does, once.
    let ours = filter_fn(|metadata| metadata.target().starts_with("ringfence"));
    match format {
        LogFormat::Text => log.finish().with(ours).init(),
        LogFormat::Json => log.json().flatten_event(true).finish().with(ours).init(),
    }
}
