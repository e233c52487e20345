//! Writing a cpio archive in the `newc` format, which Linux unpacks as its initramfs (Linux, "initramfs buffer format").
//!
//! Every entry is a header of a magic and thirteen numbers in hexadecimal, the name, and the content, each padded to four bytes.
//! All times and owners are zero, so the same input gives the same archive.

const DIRECTORY: u32 = 0o040_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;

/// An archive in the making.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder. Parents come before their children.
    pub(crate) fn directory(&mut self, name: &str) {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file with these permissions.
    pub(crate) fn file(&mut self, name: &str, permissions: u32, content: &[u8]) {
        self.entry(name, REGULAR | permissions, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, name: &str, to: &str) {
        self.entry(name, SYMLINK | 0o777, (0, 0), to.as_bytes());
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[]);
    }

    /// The whole archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let links = if mode & 0o170_000 == DIRECTORY { 2 } else { 1 };
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        self.entries += 1;
        // inode, mode, uid, gid, links, time, size, device it is on (2), device it is (2), name's size, checksum
        let header = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        for number in header {
            self.bytes.extend(format!("{number:08x}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn writes_the_bytes_that_the_format_wants() {
        let mut archive = Archive::default();
        archive.file("ab", 0o644, b"xyz");
        let bytes = archive.finish();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.starts_with("07070100000001000081a4000000000000000000000001000000000000000300000000"), "{text}");
        assert_eq!(bytes.get(110..119), Some(&b"ab\0\0\0\0xyz"[..]), "header and name end at a multiple of four");
        assert_eq!(bytes.len() % 4, 0);
        assert!(text.contains("TRAILER!!!"));
    }

    #[test]
    fn is_read_by_cpio_if_the_machine_has_one() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.file("dev/odd", 0o600, b"12345");
        archive.symlink("link", "dev/odd");
        let Ok(mut cpio) = Command::new("cpio").arg("-t").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn() else {
            return println!("skipped: no cpio here");
        };
        cpio.stdin.take().expect("input").write_all(&archive.finish()).expect("written");
        let output = cpio.wait_with_output().expect("the end");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "dev\ndev/odd\nlink\n");
    }
}
