//! Which files have something new to say: decided look by look, without a clock or a thread.
//!
//! A look is a stat that follows symbolic links, so that a file edited in place, one renamed over,
//! a link that leads elsewhere since (as Kubernetes swaps its ConfigMaps), a mount of a single file
//! and a network file system all look alike. A file is read once it is the same in two looks
//! running, so that none is read half-written as a rule; where one was, the next look that differs
//! reads it again. What counts as a change is the content: to touch a file changes nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::tree::{Kind, Node};

/// SHA-256 of a file's bytes, or of a value in it.
pub type Digest = [u8; 32];

/// What one look at a file saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// A file.
    Present(Stamp),
    /// None that could be looked at.
    Absent(io::ErrorKind),
    /// Something else of that name: a directory, a pipe.
    NoFile,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds since 1970.
    modified: (i64, i64),
    /// The same of its owner, rights and names: a file that becomes readable is worth a look.
    changed: (i64, i64),
}

impl Sight {
    /// Looks at a file.
    pub fn of(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(it) if it.is_file() => Sight::Present(Stamp {
                device: it.dev(),
                inode: it.ino(),
                bytes: it.size(),
                modified: (it.mtime(), it.mtime_nsec()),
                changed: (it.ctime(), it.ctime_nsec()),
            }),
            Ok(_) => Sight::NoFile,
            Err(error) => Sight::Absent(error.kind()),
        }
    }

    /// Why there is nothing to read; `None` where there is.
    pub fn fault(self) -> Option<String> {
        match self {
            Sight::Present(_) => None,
            Sight::Absent(io::ErrorKind::NotFound) => {
                Some("cannot be read: no such file".to_owned())
            }
            Sight::Absent(kind) => Some(format!("cannot be read: {kind}")),
            Sight::NoFile => Some("not a file, expected a file".to_owned()),
        }
    }
}

/// What is to be done after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it is as it was.
    Rest,
    /// Nothing yet: it may still be changing.
    Wait,
    /// Read it.
    Read,
    /// Say that it cannot be read. Once: what follows is [`Step::Rest`].
    Tell,
}

/// What is known of one file.
#[derive(Clone, Debug, Default)]
pub struct Track {
    /// What the last look saw.
    last: Option<Sight>,
    /// What was acted upon last.
    settled: Option<Sight>,
    /// Digest of the content that was judged last, whatever came of it.
    judged: Option<Digest>,
}

impl Track {
    /// A file whose content is in force.
    pub fn new(in_force: Digest) -> Self {
        Track { judged: Some(in_force), ..Track::default() }
    }

    /// What is to be done after this look.
    pub fn look(&mut self, sight: Sight) -> Step {
        let is_quiet = self.last == Some(sight);
        self.last = Some(sight);
        if !is_quiet {
            return Step::Wait;
        }
        if self.settled == Some(sight) {
            return Step::Rest;
        }
        self.settled = Some(sight);
        match sight {
            Sight::Present(_) => Step::Read,
            Sight::Absent(_) | Sight::NoFile => {
                self.unreadable();
                Step::Tell
            }
        }
    }

    /// Whether this content is another than that which was judged last. From now on it is that.
    pub fn is_new(&mut self, content: &[u8]) -> bool {
        let digest = digest(content);
        self.judged.replace(digest) != Some(digest)
    }

    /// It could not be read, which was told: whatever is read next is judged.
    pub fn unreadable(&mut self) {
        self.judged = None;
    }

    /// It was gone between the look and the reading: the next looks begin anew.
    pub fn unsettle(&mut self) {
        (self.last, self.settled) = (None, None);
    }
}

/// SHA-256 of a file's bytes.
pub fn digest(content: &[u8]) -> Digest {
    Sha256::digest(content).into()
}

/// A file's values by top-level key, without comments and layout; what may be secret is hashed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sections(BTreeMap<String, Digest>);

impl Sections {
    /// Those of a parsed file.
    pub fn of(root: &Node) -> Self {
        let Kind::Mapping(entries) = &root.kind else { return Sections::default() };
        let section = |value: &Node| {
            let mut hash = Sha256::new();
            value.digest(&mut hash);
            hash.finalize().into()
        };
        Sections(entries.iter().map(|it| (it.key.clone(), section(&it.value))).collect())
    }

    /// The keys whose values differ, in alphabetical order.
    pub fn differing<'a>(&'a self, other: &'a Sections) -> Vec<&'a str> {
        let keys = self.0.keys().chain(other.0.keys());
        let mut keys: Vec<&str> =
            keys.filter(|key| self.0.get(*key) != other.0.get(*key)).map(String::as_str).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tree;

    fn stamp(inode: u64) -> Sight {
        let modified = (1_767_225_600, 1);
        Sight::Present(Stamp { device: 1, inode, bytes: 10, modified, changed: modified })
    }

    const GONE: Sight = Sight::Absent(io::ErrorKind::NotFound);

    fn steps(track: &mut Track, sights: &[Sight]) -> Vec<Step> {
        sights.iter().map(|sight| track.look(*sight)).collect()
    }

    #[test]
    fn a_file_is_read_once_it_has_been_the_same_twice() {
        let mut track = Track::new(digest(b"old"));
        let sights = [stamp(1), stamp(1), stamp(1), stamp(2), stamp(3), stamp(3), stamp(3)];
        use Step::{Read, Rest, Wait};
        assert_eq!(steps(&mut track, &sights), [Wait, Read, Rest, Wait, Wait, Read, Rest]);
    }

    #[test]
    fn what_is_gone_for_one_look_is_nobodys_business() {
        let mut track = Track::new(digest(b"old"));
        use Step::{Read, Rest, Tell, Wait};
        let sights = [stamp(1), stamp(1), GONE, stamp(2), stamp(2)];
        assert_eq!(steps(&mut track, &sights), [Wait, Read, Wait, Wait, Read]);
        // Gone for longer is told once, and back again is news whatever it holds.
        assert!(!track.is_new(b"old"));
        assert_eq!(steps(&mut track, &[GONE, GONE, GONE]), [Wait, Tell, Rest]);
        assert_eq!(steps(&mut track, &[stamp(2), stamp(2)]), [Wait, Read]);
        assert!(track.is_new(b"old"));
        // Back as it was before anybody noticed.
        assert_eq!(steps(&mut track, &[GONE, stamp(2), stamp(2)]), [Wait, Wait, Rest]);
        // Gone between look and reading.
        track.unsettle();
        assert_eq!(steps(&mut track, &[stamp(2), stamp(2)]), [Wait, Read]);
    }

    #[test]
    fn the_same_content_is_no_news() {
        let mut track = Track::new(digest(b"old"));
        assert!(!track.is_new(b"old"));
        assert!(track.is_new(b"bad"));
        assert!(!track.is_new(b"bad"), "what was refused is refused once");
        assert!(track.is_new(b"old"));
    }

    #[test]
    fn a_link_that_leads_elsewhere_is_another_sight() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["one", "two"] {
            std::fs::write(path(name), "same").unwrap();
        }
        std::os::unix::fs::symlink("one", path("link")).unwrap();
        let before = Sight::of(&path("link"));
        assert_eq!(before, Sight::of(&path("one")));
        std::os::unix::fs::symlink("two", path("next")).unwrap();
        std::fs::rename(path("next"), path("link")).unwrap();
        assert_ne!(before, Sight::of(&path("link")));
        assert_eq!(Sight::of(directory.path()), Sight::NoFile);
        assert_eq!(Sight::of(&path("none")), GONE);
        assert_eq!(GONE.fault().as_deref(), Some("cannot be read: no such file"));
    }

    #[test]
    fn sections_differ_by_value_alone() {
        let sections = |text: &str| Sections::of(&tree::parse(text, &|_| None).unwrap().root);
        let one = sections("server: { workers: 1 }\nlog: { level: info }\n");
        let same = sections("# a comment\nlog:\n  level: info\nserver: { workers: 1 }\n");
        assert!(one.differing(&same).is_empty());
        let other = sections("server: { workers: 2 }\nheaders: {}\nlog: { level: info }\n");
        assert_eq!(one.differing(&other), ["headers", "server"]);
        assert_eq!(one.differing(&Sections::default()), ["log", "server"]);
    }
}
