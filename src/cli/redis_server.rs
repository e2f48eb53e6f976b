//! A Redis for the demo: a process that ends with this one, and stores nothing on disk.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::secret::hex;

/// The programs that will do, by their names on the path.
const PROGRAMS: [&str; 2] = ["redis-server", "valkey-server"];
/// It listens within that time, or is not waited for any longer.
const STARTS_WITHIN: Duration = Duration::from_secs(5);
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum RedisServerError {
    /// It is not installed.
    #[error(
        "several replicas need Redis 7, and neither redis-server nor valkey-server is on the path: install one (Debian and Ubuntu: apt install redis-server; macOS: brew install redis), or run the demo without --replicas"
    )]
    NotInstalled,
    /// It does not run.
    #[error("{0} did not start to listen on port {1}")]
    DoesNotListen(&'static str, u16),
    /// The system does not allow it.
    #[error("a Redis for the demo cannot be started: {0}")]
    System(#[from] io::Error),
}

/// A server, with a key for the customer hash.
pub(super) struct RedisServer {
    process: Child,
    folder: PathBuf,
    /// The port on loopback.
    pub(super) port: u16,
    /// The file for `log.hash_key_file`.
    pub(super) hash_key: PathBuf,
}

impl RedisServer {
    /// Starts one on a free port.
    pub(super) async fn start() -> Result<Self, RedisServerError> {
        let mut random = [0; 32];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let name = hex(&random[..8]);
        let folder = std::env::temp_dir().join(format!("zvgate-demo-{name}"));
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let started = Self::spawn(&folder, port);
        let (program, process) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = std::fs::remove_dir(&folder);
                return Err(error);
            }
        };
        let hash_key = folder.join("hash-key");
        // Whatever fails from here on, the process ends and the folder is removed.
        let server = Self { process, folder, port, hash_key };
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&server.hash_key)?;
        io::Write::write_all(&mut { file }, hex(&random).as_bytes())?;
        server.listening(program).await?;
        Ok(server)
    }

    fn spawn(folder: &Path, port: u16) -> Result<(&'static str, Child), RedisServerError> {
        for program in PROGRAMS {
            let mut command = Command::new(program);
            command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
            command.args(["--maxmemory-policy", "noeviction", "--port", &port.to_string(), "--dir"]).arg(folder);
            // A group of its own: Ctrl-C is for this process, which ends it last.
            match command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).spawn() {
                Ok(process) => return Ok((program, process)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(RedisServerError::NotInstalled)
    }

    async fn listening(&self, program: &'static str) -> Result<(), RedisServerError> {
        let listens = async {
            while tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).await.is_err() {
                tokio::time::sleep(ASK_AGAIN_AFTER).await;
            }
        };
        let listens = tokio::time::timeout(STARTS_WITHIN, listens).await;
        listens.map_err(|_| RedisServerError::DoesNotListen(program, self.port))
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // Nothing of it is needed any more.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
