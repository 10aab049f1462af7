//! The engine: where it listens, what it is, what it has, and what earlier runs left there.

use std::collections::HashMap;
use std::env;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bollard::errors::Error as ApiError;
use bollard::models::{ImageInspect, SystemInfo, SystemInfoCgroupVersionEnum};
use bollard::query_parameters::{ListContainersOptions, RemoveContainerOptions};
use bollard::{API_DEFAULT_VERSION, ClientVersion, Docker as Client};

use super::files::Folder;
use super::{Error, OLDEST_API};
use crate::config::Config;
use crate::sandbox::cgroup::Owner;

/// The label of every container; its value is the container's name, which says whose it is.
pub(super) const LABEL: &str = "nsbox";

/// What is known of an engine.
#[derive(Debug)]
pub(super) struct Engine {
    pub socket: PathBuf,
    api: (usize, usize),
    pub owner: Owner,
    /// The image by its digest, so that one outcome's image is what ran.
    pub image: String,
    /// The names of the image's own variables.
    pub variables: Vec<String>,
    /// Its CPUs: no limit may be above.
    pub cpus: Option<f64>,
    /// Version of its control groups.
    pub cgroup: Option<u8>,
    /// Whether it can limit memory with its swap, processes, CPU time.
    pub limits: [bool; 3],
}

impl Engine {
    /// Finds the engine and the image, and removes what runs of dead supervisors left.
    pub(super) async fn find(config: &Config, socket: Option<&Path>, deadline: Instant) -> Result<Self, Error> {
        let socket = socket.map_or_else(find_socket, |socket| first_of(vec![socket.to_owned()]))?;
        let limit = config.limits.setup_timeout;
        let late = Error::SetupTimeout { socket: socket.clone(), limit };
        let found = tokio::time::timeout_at(deadline.into(), Self::survey(config, socket)).await;
        found.unwrap_or(Err(late))
    }

    async fn survey(config: &Config, socket: PathBuf) -> Result<Self, Error> {
        let failed = |step| failed(&socket, step);
        let owner = Owner::current().map_err(|source| Error::Step { step: "name this process", source })?;
        let client = connect(&socket, API_DEFAULT_VERSION)?;
        let client = client.negotiate_version().await.map_err(failed("tell its version"))?;
        let version = client.client_version();
        let api = (version.major_version, version.minor_version);
        if api < OLDEST_API {
            return Err(Error::TooOld { socket, has: format!("{}.{}", api.0, api.1) });
        }
        let image = client.inspect_image(&config.docker.image).await.map_err(|error| match error {
            ApiError::DockerResponseServerError { status_code: 404, .. } => {
                Error::NoImage { socket: socket.clone(), image: config.docker.image.clone() }
            }
            source => failed("inspect the image")(source),
        })?;
        let info = client.info().await.map_err(failed("tell what it can limit"))?;
        sweep(&client, &owner).await.map_err(failed("remove what earlier runs left"))?;
        Folder::sweep(&owner);
        let engine = Self::of(config, socket, api, owner, image, &info)?;
        if !config.allow_degraded {
            let names = ["memory", "processes", "CPU time"].into_iter().zip(engine.limits);
            let missing: Vec<&str> = names.filter(|(_, can)| !can).map(|(name, _)| name).collect();
            if !missing.is_empty() {
                return Err(Error::NoLimit { socket: engine.socket, what: missing.join(", ") });
            }
        }
        Ok(engine)
    }

    fn of(
        config: &Config,
        socket: PathBuf,
        api: (usize, usize),
        owner: Owner,
        image: ImageInspect,
        info: &SystemInfo,
    ) -> Result<Self, Error> {
        let image_config = image.config.unwrap_or_default();
        let volumes = image_config.volumes.unwrap_or_default();
        if !volumes.is_empty() {
            return Err(Error::Volumes { image: config.docker.image.clone(), volumes: volumes.join(", ") });
        }
        let variables = image_config.env.unwrap_or_default().into_iter();
        let can = |flag: Option<bool>| flag == Some(true);
        Ok(Self {
            socket,
            api,
            owner,
            image: image.id.unwrap_or_else(|| config.docker.image.clone()),
            variables: variables.filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())).collect(),
            #[expect(clippy::cast_precision_loss, reason = "a number of CPUs")]
            cpus: info.ncpu.filter(|count| *count > 0).map(|count| count as f64),
            cgroup: match info.cgroup_version {
                Some(SystemInfoCgroupVersionEnum::_1) => Some(1),
                Some(SystemInfoCgroupVersionEnum::_2) => Some(2),
                _ => None,
            },
            limits: [can(info.memory_limit) && can(info.swap_limit), can(info.pids_limit), can(info.cpu_cfs_quota)],
        })
    }

    /// A client for one runtime.
    pub(super) fn client(&self) -> Result<Client, Error> {
        let (major_version, minor_version) = self.api;
        connect(&self.socket, &ClientVersion { major_version, minor_version })
    }
}

/// A step of the set-up failed.
pub(super) fn failed(socket: &Path, step: &'static str) -> impl Fn(ApiError) -> Error {
    move |source| Error::Engine { socket: socket.to_owned(), step, source }
}

fn connect(socket: &Path, version: &ClientVersion) -> Result<Client, Error> {
    // Whoever waits for an answer has a limit of its own; this one is never reached.
    const SECONDS: u64 = 24 * 3600;
    Client::connect_with_unix(&socket.display().to_string(), SECONDS, version).map_err(failed(socket, "be reached"))
}

/// Removes the containers of supervisors that are dead, and those of this one's own whose runs are over: an engine that died
/// could not be told to.
async fn sweep(client: &Client, owner: &Owner) -> Result<(), ApiError> {
    let filters = HashMap::from([("label".to_owned(), vec![LABEL.to_owned()])]);
    let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
    for container in client.list_containers(Some(options)).await? {
        let name = container.labels.as_ref().and_then(|labels| labels.get(LABEL));
        if name.is_some_and(|name| owner.is_stale(name) || owner.has_left(name)) {
            remove(client, &container.id.unwrap_or_default()).await?;
        }
    }
    Ok(())
}

/// Kills and removes a container; that there is none is fine.
pub(super) async fn remove(client: &Client, name: &str) -> Result<(), ApiError> {
    let options = || RemoveContainerOptions { force: true, v: true, ..Default::default() };
    for _ in 0..50 {
        match client.remove_container(name, Some(options())).await {
            Err(ApiError::DockerResponseServerError { status_code: 404, .. }) => return Ok(()),
            // Somebody else, another sweep, removes it just now.
            Err(ApiError::DockerResponseServerError { status_code: 409, .. }) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            removed => return removed,
        }
    }
    Ok(())
}

/// Where an engine accepts connections.
pub(crate) fn find_socket() -> Result<PathBuf, Error> {
    let variable = |name: &str| env::var_os(name).and_then(|value| value.into_string().ok());
    let sockets = sockets(variable);
    match variable("DOCKER_HOST") {
        Some(host) if sockets.is_empty() => Err(Error::NotLocal(host)),
        _ => first_of(sockets),
    }
}

/// The first socket that accepts a connection.
fn first_of(sockets: Vec<PathBuf>) -> Result<PathBuf, Error> {
    let mut tried = Vec::new();
    for socket in sockets {
        match UnixStream::connect(&socket) {
            Ok(_) => return Ok(socket),
            Err(error) => tried.push(format!("{}: {error}", socket.display())),
        }
    }
    Err(Error::NoEngine { tried: tried.join("; ") })
}

/// The sockets to try: that of DOCKER_HOST alone, else the system's and the user's own.
fn sockets(variable: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    if let Some(host) = variable("DOCKER_HOST") {
        return host.strip_prefix("unix://").map(PathBuf::from).into_iter().collect();
    }
    let own = variable("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join("docker.sock"));
    std::iter::once(PathBuf::from("/var/run/docker.sock")).chain(own).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_host_is_the_one_socket_where_it_is_set() {
        let from = |pairs: &'static [(&str, &str)]| {
            sockets(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(from(&[("DOCKER_HOST", "unix:///d.sock"), ("XDG_RUNTIME_DIR", "/r")]), [Path::new("/d.sock")]);
        assert!(from(&[("DOCKER_HOST", "tcp://10.0.0.1:2375")]).is_empty());
        let both = [Path::new("/var/run/docker.sock"), Path::new("/r/docker.sock")];
        assert_eq!(from(&[("XDG_RUNTIME_DIR", "/r")]), both);
    }
}
