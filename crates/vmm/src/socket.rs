//! Unix sockets in a machine's directory. A socket's address holds 107 bytes of path and data
//! directories may be deeper than that, so they are reached through a descriptor of their
//! directory.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::{fs::PermissionsExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
};

use tokio::net::UnixStream;

use crate::VmmError;

fn short(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// A listening socket in place of whatever was there, for root only.
pub(crate) fn listen(directory: &Path, name: &str) -> Result<OwnedFd, VmmError> {
    let attempt = || {
        remove(directory, name)?;
        let opened = File::open(directory)?;
        let listener = UnixListener::bind(short(&opened, name))?;
        std::fs::set_permissions(directory.join(name), std::fs::Permissions::from_mode(0o600))?;
        io::Result::Ok(OwnedFd::from(listener))
    };
    attempt().map_err(VmmError::io(format!("listen on {}", directory.join(name).display())))
}

/// Connects to a socket.
pub(crate) async fn connect(directory: &Path, name: &str) -> Result<UnixStream, VmmError> {
    let attempted = || format!("connect to {}", directory.join(name).display());
    let opened = File::open(directory).map_err(VmmError::io(attempted()))?;
    UnixStream::connect(short(&opened, name)).await.map_err(VmmError::io(attempted()))
}

/// Connects to a socket, for code that blocks.
pub(crate) fn connect_blocking(
    directory: &Path,
    name: &str,
) -> io::Result<std::os::unix::net::UnixStream> {
    std::os::unix::net::UnixStream::connect(short(&File::open(directory)?, name))
}

/// Removes a socket, if it is there.
pub(crate) fn remove(directory: &Path, name: &str) -> io::Result<()> {
    match std::fs::remove_file(directory.join(name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn sockets_work_in_directories_with_long_names_and_replace_old_ones() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120)).join("e".repeat(120));
        std::fs::create_dir_all(&deep).unwrap();
        drop(listen(&deep, "a.sock").unwrap());
        let listener = UnixListener::from(listen(&deep, "a.sock").unwrap());
        let mut client = connect(&deep, "a.sock").await.unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_nonblocking(true).unwrap();
        UnixStream::from_std(server).unwrap().write_all(b"hello").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "hello");
    }
}
