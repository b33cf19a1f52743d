//! A real kube-apiserver with its etcd, where there are such programs.

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use hyper::Method;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde_json::json;
use tempfile::TempDir;

use crate::client::Client;

/// The environment variable that names the folder with `kube-apiserver` and `etcd`, as in other Kubernetes projects.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// What tests without the programs say.
pub const SKIPPED: &str = "skipped: no KUBEBUILDER_ASSETS";
/// How long a server may take until it is ready.
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(100);
/// Ports are free when they are looked for and may be taken when they are used.
const ATTEMPTS: usize = 3;
const TOKEN: &str = "a-token-of-an-administrator";

/// A kube-apiserver and an etcd of its own on `127.0.0.1`, with nothing around them: no controllers, scheduler, kubelets.
/// Both are killed, and their data removed, when this is dropped.
#[derive(Debug)]
pub struct RealApiServer {
    assets: PathBuf,
    folder: TempDir,
    /// Of the API server, and of etcd for its clients and its peers.
    ports: [u16; 3],
    etcd: Process,
    apiserver: Process,
}

impl RealApiServer {
    /// The folder that the environment names; none if it names none.
    pub fn assets() -> Option<PathBuf> {
        env::var_os(ASSETS).filter(|folder| !folder.is_empty()).map(PathBuf::from)
    }

    /// Starts both programs from a folder and waits until they are ready.
    ///
    /// # Errors
    ///
    /// The programs are not there, end at once or do not become ready within three minutes; then the end of their logs is in
    /// the error.
    pub fn start(assets: &Path) -> io::Result<RealApiServer> {
        let mut outcome = RealApiServer::attempt(assets);
        for _ in 1..ATTEMPTS {
            if outcome.is_err() {
                outcome = RealApiServer::attempt(assets);
            }
        }
        outcome
    }

    fn attempt(assets: &Path) -> io::Result<RealApiServer> {
        let folder = tempfile::tempdir()?;
        let ports = free_ports()?;
        write_credentials(folder.path(), ports[0])?;
        let etcd = start_etcd(assets, folder.path(), ports)?;
        let apiserver = start_apiserver(assets, folder.path(), ports)?;
        let mut server = RealApiServer { assets: assets.to_owned(), folder, ports, etcd, apiserver };
        server.wait_until_ready()?;
        Ok(server)
    }

    /// A kubeconfig file of an administrator. It is removed with the server.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Forgets all versions before now, in etcd and in the memory of the API server, which is started anew for it. So this
    /// also ends all watches.
    ///
    /// # Errors
    ///
    /// etcd does not answer, or the API server does not become ready again.
    pub fn forget(&mut self) -> io::Result<()> {
        let etcd = Client::at(&format!("http://127.0.0.1:{}", self.ports[1]))?;
        // Any request tells the revision; this one is for a key that is not there.
        let answer = etcd.send(&Method::POST, "/v3/kv/range", &json!({"key": "bm9uZQ=="}))?;
        let revision = &answer.json["header"]["revision"];
        let answer = etcd.send(&Method::POST, "/v3/kv/compaction", &json!({"revision": revision}))?;
        if answer.code != 200 {
            return Err(io::Error::other(format!("etcd refuses to forget: {}", answer.text)));
        }
        self.restart()
    }

    /// Kills the API server and starts it again at the same address, with the same objects.
    ///
    /// # Errors
    ///
    /// It does not become ready again.
    pub fn restart(&mut self) -> io::Result<()> {
        self.apiserver.stop();
        self.apiserver = start_apiserver(&self.assets, self.folder.path(), self.ports)?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> io::Result<()> {
        let client = Client::new(&self.kubeconfig())?;
        let end = Instant::now() + PATIENCE;
        loop {
            // Until it listens there is an error, and until it is ready another code.
            if client.get("/readyz").is_ok_and(|answer| answer.code == 200) {
                return Ok(());
            }
            for process in [&mut self.etcd, &mut self.apiserver] {
                if process.has_ended()? {
                    return Err(process.complaint("has ended"));
                }
            }
            if Instant::now() > end {
                return Err(self.apiserver.complaint("does not become ready"));
            }
            thread::sleep(LOOK);
        }
    }
}

/// A program that is killed when this is dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(assets: &Path, program: &str, folder: &Path, arguments: &[String]) -> io::Result<Process> {
        let log = folder.join(format!("{program}.log"));
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let program = assets.join(program);
        let child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{} ({ASSETS}): {error}", program.display())))?;
        Ok(Process { child, log })
    }

    fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    fn stop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn complaint(&self, what: &str) -> io::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(10)..].join("\n");
        io::Error::other(format!("{} {what}:\n{last}", self.log.display()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

fn free_ports() -> io::Result<[u16; 3]> {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    // All are held until all are known, so that they differ.
    let held = [TcpListener::bind(any)?, TcpListener::bind(any)?, TcpListener::bind(any)?];
    Ok([held[0].local_addr()?.port(), held[1].local_addr()?.port(), held[2].local_addr()?.port()])
}

fn start_etcd(assets: &Path, folder: &Path, [_, clients, peers]: [u16; 3]) -> io::Result<Process> {
    let arguments = [
        "--name=test".to_owned(),
        format!("--data-dir={}", folder.join("etcd").display()),
        format!("--listen-client-urls=http://127.0.0.1:{clients}"),
        format!("--advertise-client-urls=http://127.0.0.1:{clients}"),
        format!("--listen-peer-urls=http://127.0.0.1:{peers}"),
        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peers}"),
        format!("--initial-cluster=test=http://127.0.0.1:{peers}"),
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    Process::start(assets, "etcd", folder, &arguments)
}

fn start_apiserver(assets: &Path, folder: &Path, [port, etcd, _]: [u16; 3]) -> io::Result<Process> {
    let file = |name: &str| folder.join(name).display().to_string();
    let arguments = [
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        "--advertise-address=127.0.0.1".to_owned(),
        // The address is this host's own, which no endpoint may have.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--cert-dir={}", file("certificates")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={}", file("accounts.pub")),
        format!("--service-account-signing-key-file={}", file("accounts.key")),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
        "--authorization-mode=RBAC".to_owned(),
        // Without controllers no namespace gets its account, and pods without one would be refused.
        "--disable-admission-plugins=ServiceAccount".to_owned(),
        "--allow-privileged=true".to_owned(),
    ];
    Process::start(assets, "kube-apiserver", folder, &arguments)
}

/// Keys and certificates for one run, and a kubeconfig of an administrator.
fn write_credentials(folder: &Path, port: u16) -> io::Result<()> {
    let key = || KeyPair::generate().map_err(io::Error::other);
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let authority_key = key()?;
    let root = authority.self_signed(&authority_key).map_err(io::Error::other)?;
    let issuer = Issuer::new(authority, authority_key);

    let mut server = CertificateParams::new(vec!["127.0.0.1".to_owned()]).map_err(io::Error::other)?;
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server_key = key()?;
    let certificate = server.signed_by(&server_key, &issuer).map_err(io::Error::other)?;
    let accounts = key()?;

    fs::write(folder.join("ca.crt"), root.pem())?;
    fs::write(folder.join("server.crt"), certificate.pem())?;
    fs::write(folder.join("server.key"), server_key.serialize_pem())?;
    fs::write(folder.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(folder.join("accounts.pub"), accounts.public_key_pem())?;
    fs::write(folder.join("tokens.csv"), format!("{TOKEN},admin,1,system:masters\n"))?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config",
        "clusters": [{"name": "test", "cluster": {
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": folder.join("ca.crt"),
        }}],
        "users": [{"name": "admin", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
        "current-context": "test",
    });
    serde_json::to_writer(File::create(folder.join("kubeconfig"))?, &kubeconfig)?;
    Ok(())
}
