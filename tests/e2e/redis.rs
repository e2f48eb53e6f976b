//! A real Redis, as a process of its own, and replicas of the gateway that share it.

use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::program::Running;
use crate::support::{Overrides, TestGateway, Upstream, configuration, until};

/// A port that was free just now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A Redis on loopback that stores nothing on disk.
pub(crate) struct Redis {
    pub(crate) port: u16,
    args: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    process: Option<Running>,
    pub(crate) folder: tempfile::TempDir,
}

impl Redis {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// With a configuration of its own, and more arguments.
    pub(crate) fn of(file: &std::path::Path, args: &[&str]) -> Self {
        Self::with(&[&[file.to_str().unwrap()], args].concat())
    }

    /// With more arguments.
    pub(crate) fn with(args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("hash-key"), "the key of the customer hash").unwrap();
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(folder.path().join("hash-key"), permissions).unwrap();
        let mut redis = Self { port: free_port(), args, environment: Vec::new(), process: None, folder };
        redis.launch();
        redis
    }

    /// Starts its process.
    pub(crate) fn launch(&mut self) {
        let mut command = Command::new("redis-server");
        command.envs(self.environment.iter().cloned());
        if self.args.first().is_none_or(|first| first.starts_with("--")) {
            command.args([
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
                "--maxmemory-policy",
                "noeviction",
            ]);
        }
        command.args(&self.args).args(["--port", &self.port.to_string(), "--dir"]).arg(self.folder.path());
        self.process = Some(Running(command.stdout(Stdio::null()).spawn().unwrap()));
        let is_up = || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok();
        for _ in 0..2000 {
            if is_up() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("Redis does not listen after ten seconds");
    }

    /// Ends its process at once.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    pub(crate) fn signal(&self, signal: &str) {
        self.process.as_ref().unwrap().signal(signal);
    }

    /// What it answers to a command.
    pub(crate) fn command(&self, words: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(words).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A connection on which it reports every command that it executes.
    pub(crate) fn monitor(&self) -> TcpStream {
        let mut monitor = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        monitor.write_all(b"MONITOR\r\n").unwrap();
        monitor.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        monitor
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The path of a file in its folder.
    pub(crate) fn file(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Starts a replica that shares it; it has joined the others.
    pub(crate) async fn replica(&self, upstream: &impl Upstream, overrides: Overrides<'_>) -> TestGateway {
        let gateway = self.early_replica(upstream, overrides).await;
        until("it has joined", async || gateway.metric("zvgate_cluster_up").await == 1.0).await;
        gateway
    }

    /// The same, which may not have joined yet.
    pub(crate) async fn early_replica(&self, upstream: &impl Upstream, overrides: Overrides<'_>) -> TestGateway {
        self.of_file(upstream, overrides, None).await
    }

    /// Starts a replica with a configuration file; it has joined the others.
    pub(crate) async fn replica_of(
        &self,
        upstream: &impl Upstream,
        overrides: Overrides<'_>,
        file: &str,
    ) -> TestGateway {
        let gateway = self.of_file(upstream, overrides, Some(file)).await;
        until("it has joined", async || gateway.metric("zvgate_cluster_up").await == 1.0).await;
        gateway
    }

    async fn of_file(&self, upstream: &impl Upstream, overrides: Overrides<'_>, file: Option<&str>) -> TestGateway {
        let (url, key) = (self.url(), self.file("hash-key"));
        let mut all =
            vec![("cluster.url", url.as_str()), ("cluster.replicas", "3"), ("log.hash_key_file", key.as_str())];
        all.extend(overrides);
        TestGateway::of(configuration(upstream, &all, file)).await
    }

    /// Starts three replicas that share it, and waits until all may use their slots.
    pub(crate) async fn replicas(&self, upstream: &impl Upstream, overrides: Overrides<'_>) -> [TestGateway; 3] {
        let all = [
            self.replica(upstream, overrides).await,
            self.replica(upstream, overrides).await,
            self.replica(upstream, overrides).await,
        ];
        for gateway in &all {
            until("all are live", async || gateway.metric("zvgate_cluster_replicas").await == 3.0).await;
        }
        // None is free at first.
        until("there is a slot", async || all[0].read("first").await.status == 200).await;
        all
    }
}

/// How often a replica connected.
pub(crate) async fn connections(gateway: &TestGateway) -> f64 {
    gateway.metric("zvgate_cluster_requests_total{op=\"connect\",result=\"ok\"}").await
}
