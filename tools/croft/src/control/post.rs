//! A run's post: the socket that it listens on, and the link that leads there.
//!
//! Both are names in the user's folders, and names get lost while a host runs for weeks: a cleaner of temporary files removes the
//! socket, a logout removes the whole private folder, somebody moves the folder for logs. Without its name a host could be
//! neither seen nor stopped any more, so both are checked and created again. The folder for logs is held open, not remembered by
//! its path: wherever it is moved to, the link in it belongs to this run.

use super::ControlError;
use super::place::Place;
use super::server::lock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// How often the post is looked after while no client comes.
const ROUND: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Which file something is, whatever it is called.
type Identity = (u64, u64);

/// The socket and the link.
#[derive(Debug)]
pub(super) struct Post {
    socket: PathBuf,
    /// The socket that was made last.
    own: Option<Identity>,
    link: Option<Link>,
    is_over: bool,
}

#[derive(Debug)]
struct Link {
    folder: OwnedFd,
    name: &'static str,
    target: PathBuf,
}

impl Post {
    /// Takes the post up. Says what is wrong with the link, if anything is: the host is found all the same.
    pub(super) fn take_up(place: &Place) -> std::result::Result<(Self, UnixListener, Option<String>), ControlError> {
        let mut post = Self { socket: place.socket.clone(), own: None, link: None, is_over: false };
        let listener = post.bind().map_err(|source| ControlError::Socket { socket: place.socket.clone(), source })?;
        let mut complaint = None;
        if let Some((folder, name)) = &place.link {
            let opened = Link::open(folder, name, &place.socket).and_then(|link| link.make().map(|()| link));
            match opened {
                Ok(link) => post.link = Some(link),
                Err(error) => complaint = Some(format!("{}: {error}", folder.join(name).display())),
            }
        }
        Ok((post, listener, complaint))
    }

    /// Makes the socket.
    fn bind(&mut self) -> Result<UnixListener> {
        let refused = UnixStream::connect(&self.socket).err().map(|error| error.kind());
        if refused == Some(ErrorKind::ConnectionRefused) {
            // Left by a run that was killed and had this one's number.
            fs::remove_file(&self.socket)?;
        }
        let listener = UnixListener::bind(&self.socket)?;
        self.own = identity(&self.socket);
        fs::set_permissions(&self.socket, fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    }

    /// Makes anew what was lost. Gives the socket to listen on from now on, if that is another one.
    pub(super) fn keep(&mut self) -> Option<UnixListener> {
        if self.is_over {
            return None;
        }
        if let Some(link) = &self.link
            && !link.is_there()
        {
            // What cannot be made now is tried again the next time, here and below.
            let _ = link.make();
        }
        if self.is_there() {
            return None;
        }
        if let Some(folder) = self.socket.parent() {
            let _ = fs::DirBuilder::new().mode(0o700).create(folder);
        }
        self.bind().ok()
    }

    fn is_there(&self) -> bool {
        self.own.is_some() && identity(&self.socket) == self.own
    }

    /// Leaves it, with nothing behind.
    pub(super) fn leave(&mut self) {
        self.is_over = true;
        if self.is_there() {
            let _ = fs::remove_file(&self.socket);
        }
        if let Some(link) = &self.link
            && link.is_there()
        {
            let _ = link.remove();
        }
    }
}

/// One client after the other, until the post is left, which is looked after meanwhile.
pub(super) struct Clients {
    listener: UnixListener,
    post: Arc<Mutex<Post>>,
}

impl Clients {
    pub(super) fn new(listener: UnixListener, post: Arc<Mutex<Post>>) -> Self {
        Self { listener, post }
    }
}

impl Iterator for Clients {
    type Item = Result<UnixStream>;

    fn next(&mut self) -> Option<Result<UnixStream>> {
        loop {
            let waited = poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&ROUND));
            let mut post = lock(&self.post);
            if post.is_over {
                return None;
            }
            match waited {
                Ok(0) => {
                    if let Some(renewed) = post.keep() {
                        self.listener = renewed;
                    }
                }
                Ok(_) => match self.listener.accept() {
                    Ok((stream, _)) => return Some(Ok(stream)),
                    // It went away again, and nobody else came.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Some(Err(error)),
                },
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}

impl Link {
    fn open(folder: &Path, name: &'static str, target: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(folder, flags, Mode::empty())?;
        Ok(Self { folder, name, target: target.to_path_buf() })
    }

    /// Whether it leads where it has to.
    fn is_there(&self) -> bool {
        let target = rustix::fs::readlinkat(&self.folder, self.name, Vec::new());
        target.is_ok_and(|target| target.as_bytes() == self.target.as_os_str().as_bytes())
    }

    fn make(&self) -> Result<()> {
        let before = rustix::fs::statat(&self.folder, self.name, AtFlags::SYMLINK_NOFOLLOW);
        let kind = before.map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
        if matches!(kind, Ok(rustix::fs::FileType::Symlink | rustix::fs::FileType::Socket)) {
            // Another run's, which is over: the folder is this one's now.
            self.remove()?;
        }
        Ok(rustix::fs::symlinkat(&self.target, &self.folder, self.name)?)
    }

    fn remove(&self) -> Result<()> {
        rustix::fs::unlinkat(&self.folder, self.name, AtFlags::empty()).map_err(Error::from)
    }
}

/// The socket at a path.
fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::symlink_metadata(path).ok().filter(|metadata| metadata.file_type().is_socket())?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::{Place, Post};
    use std::fs;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_is_lost_is_made_anew_wherever_the_logs_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("logs")).unwrap();
        let place = Place { socket: path("private/1.socket"), link: Some((path("logs"), "croft.socket")) };
        fs::create_dir(path("private")).unwrap();
        let (mut post, _listener, complaint) = Post::take_up(&place).unwrap();
        assert_eq!((complaint, post.keep().is_none()), (None, true), "nothing is lost");
        fs::rename(path("logs"), path("moved")).unwrap();
        assert!(post.keep().is_none());
        UnixStream::connect(path("moved/croft.socket")).expect("it leads there still");
        fs::remove_file(path("moved/croft.socket")).unwrap();
        fs::remove_dir_all(path("private")).unwrap();
        let _listener = post.keep().expect("a new one");
        UnixStream::connect(path("moved/croft.socket")).expect("it leads there again");
        post.leave();
        assert!(post.keep().is_none());
        for folder in ["private", "moved"] {
            assert_eq!(fs::read_dir(path(folder)).unwrap().count(), 0, "{folder}: nothing is left behind");
        }
    }

    #[test]
    fn what_is_somebody_elses_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("croft.socket"), "mine").unwrap();
        let place = Place { socket: path("1.socket"), link: Some((folder.path().to_path_buf(), "croft.socket")) };
        let (mut post, _listener, complaint) = Post::take_up(&place).unwrap();
        assert!(complaint.unwrap().contains("croft.socket: File exists"));
        let other = Post::take_up(&place).unwrap_err().to_string();
        assert!(other.contains("1.socket: Address already in use"), "{other}");
        // Another run's socket in its place.
        fs::remove_file(path("1.socket")).unwrap();
        let (_other, _listener, _) = Post::take_up(&place).unwrap();
        assert!(post.keep().is_none(), "it is another's, and listened on");
        post.leave();
        assert!(path("1.socket").exists());
        assert_eq!(fs::read_to_string(path("croft.socket")).unwrap(), "mine");
    }
}
