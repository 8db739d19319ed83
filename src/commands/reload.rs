//! The thread that watches files and reloads what changed, off the data path.
//!
//! What is watched is a list of [`Watched`]: to have one more file reloaded (keys, certificates,
//! secrets) is to add an entry, with a function that takes the new content over or says why not.
//! The rest is done here, alike for all: a file that changed is read once it has come to rest, the
//! same content twice is no change, a file that is refused or gone is told of once and leaves what
//! ran before, SIGHUP reads all of them at once, log and metrics say what came of it. Files that
//! belong together (a certificate and its key) are one entry: when one of them changes, both are
//! read, once neither is changing any more. Functions of the list run on this thread, one at a
//! time, and may take their time: nobody waits for them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::clock::Clock;
use crate::config::load::{ReadError, read_file};
use crate::config::reload::{Digest, Sight, Step, Track};
use crate::config::tree::FILE_BYTES_MAX;
use crate::health::reloads::Reloads;
use crate::metrics::labels::Attempt;
use crate::metrics::registry::Metrics;
use crate::proxy::gate::Active;

/// How often the files are looked at. One call of the system for each; a change is in force after
/// the second look that sees it.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Policies that are kept from being freed by a worker, while requests still hold them.
const RETIRED_MAX: usize = 8;
/// Requests for a reload that wait to be heard.
const WANTED_MAX: usize = 4;

/// A file that is watched, or several that belong together.
pub struct Watched {
    files: Vec<Followed>,
    /// One of them has changed and come to rest, and another is still changing.
    is_due: bool,
    /// Whether they were taken over as they stand.
    /// What is wrong with what it holds now; `None` where that is in force.
    problem: Option<String>,
    on_change: OnChange,
}

struct Followed {
    path: PathBuf,
    track: Track,
}

/// What the files of an entry hold, or which of them cannot be read, and why.
type Contents = Result<Vec<Vec<u8>>, Fault>;

struct Fault {
    file: String,
    reason: String,
}

/// What is done with a file's new content.
pub enum OnChange {
    /// Takes it over and logs what that changed; or says why not, and leaves what ran before.
    /// Counted as a reload, whichever it was. An error names the file, and no secret of it.
    Reload(Box<dyn FnMut(Vec<u8>) -> Result<(), String> + Send>),
    /// The same of two files.
    ReloadPair(ReloadPair),
    /// Tells what it means, or that the file cannot be read: it takes a restart. Not counted.
    Tell(Box<dyn FnMut(Result<Vec<u8>, String>) + Send>),
}

/// Takes over two files, as [`OnChange::ReloadPair`] says.
pub type ReloadPair = Box<dyn FnMut(Vec<u8>, Vec<u8>) -> Result<(), String> + Send>;

impl Watched {
    /// A file whose content with this digest is in force.
    pub fn new(path: &Path, in_force: Digest, on_change: OnChange) -> Self {
        Self::all([(path, in_force)], on_change)
    }

    /// Two files whose contents with these digests are in force. `on_change` is handed both.
    pub fn pair(
        files: [(&Path, Digest); 2],
        on_change: impl FnMut(Vec<u8>, Vec<u8>) -> Result<(), String> + Send + 'static,
    ) -> Self {
        Self::all(files, OnChange::ReloadPair(Box::new(on_change)))
    }

    fn all<const N: usize>(files: [(&Path, Digest); N], on_change: OnChange) -> Self {
        let followed = |(path, in_force): (&Path, Digest)| Followed {
            path: path.to_owned(),
            track: Track::new(in_force),
        };
        let files = files.map(followed).into();
        Watched { files, is_due: false, problem: None, on_change }
    }

    /// Looks at the files; what there is to judge if one has changed and all have come to rest.
    fn look(&mut self) -> Option<Contents> {
        let (mut is_changing, mut fault) = (false, None);
        for file in &mut self.files {
            let sight = Sight::of(&file.path);
            match file.track.look(sight) {
                Step::Rest => {}
                Step::Wait => is_changing = true,
                Step::Read | Step::Tell => self.is_due = true,
            }
            // Whichever changed, one that is not there is the matter.
            fault = fault.or_else(|| Some(file.fault(sight.fault()?)));
        }
        if !self.is_due || is_changing {
            return None;
        }
        self.is_due = false;
        if let Some(fault) = fault {
            return Some(Err(fault));
        }
        let (mut contents, mut is_news) = (Vec::new(), false);
        for file in &mut self.files {
            match read_file(&file.path) {
                Ok(content) => {
                    is_news |= file.track.is_new(&content);
                    contents.push(content);
                }
                Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
                    // Gone since the look. Whatever was read of the others is to be read again.
                    self.files.iter_mut().for_each(|file| file.track.unsettle());
                    if is_news {
                        self.files.iter_mut().for_each(|file| file.track.unreadable());
                    }
                    return None;
                }
                Err(error) => {
                    file.track.unreadable();
                    return Some(Err(file.fault(error.to_string())));
                }
            }
        }
        is_news.then_some(Ok(contents))
    }

    /// Reads the files, changed or not.
    fn read(&mut self) -> Contents {
        self.is_due = false;
        let mut contents = Vec::new();
        for file in &mut self.files {
            let content = match Sight::of(&file.path).fault() {
                // To open a pipe might take for ever.
                Some(fault) => Err(fault),
                None => read_file(&file.path).map_err(|error| error.to_string()),
            };
            match content {
                Ok(content) => {
                    file.track.is_new(&content);
                    contents.push(content);
                }
                Err(reason) => {
                    file.track.unreadable();
                    return Err(file.fault(reason));
                }
            }
        }
        Ok(contents)
    }

    /// Hands new contents over, or that there are none. `None`: it was told, which is no reload.
    fn take(&mut self, contents: Contents) -> Option<Result<(), String>> {
        let first = |contents: Vec<Vec<u8>>| contents.into_iter().next().unwrap_or_default();
        let in_file = |fault: Fault| format!("{}: {}", fault.file, fault.reason);
        let contents = contents.and_then(|contents| {
            let mut files = self.files.iter().zip(&contents);
            match files.find(|(_, content)| content.len() > FILE_BYTES_MAX) {
                None => Ok(contents),
                Some((file, _)) => {
                    let reason = format!("too long, expected at most {FILE_BYTES_MAX} bytes");
                    Err(file.fault(reason))
                }
            }
        });
        let taken = match &mut self.on_change {
            OnChange::Tell(tell) => {
                tell(contents.map(first).map_err(|fault| fault.reason));
                return None;
            }
            OnChange::Reload(reload) => contents.map_err(in_file).and_then(|it| reload(first(it))),
            OnChange::ReloadPair(reload) => contents.map_err(in_file).and_then(|mut contents| {
                let second = contents.pop().unwrap_or_default();
                reload(first(contents), second)
            }),
        };
        self.problem = taken.as_ref().err().cloned();
        Some(taken)
    }

    fn name(&self) -> String {
        let names: Vec<String> =
            self.files.iter().map(|file| file.path.display().to_string()).collect();
        names.join(" and ")
    }
}

impl Followed {
    fn fault(&self, reason: String) -> Fault {
        Fault { file: self.path.display().to_string(), reason }
    }
}

/// Policies that no request begins with any more. A large one takes a while to free, which must not
/// be done by the worker whose request happens to be the last that holds it.
#[derive(Clone, Debug, Default)]
pub struct Retired(Arc<Mutex<Vec<Arc<Active>>>>);

impl Retired {
    /// Keeps one until nobody else holds it. Of more than a few the oldest is left to who does.
    pub fn keep(&self, active: Arc<Active>) {
        let mut retired = self.0.lock();
        retired.push(active);
        if retired.len() > RETIRED_MAX {
            retired.remove(0);
        }
    }

    fn free(&self) {
        self.0.lock().retain(|active| Arc::strong_count(active) > 1);
    }
}

/// Everything that the thread needs.
pub struct Reloader {
    /// The files. What is no file at the start (a pipe) cannot be read a second time and is left
    /// out.
    pub files: Vec<Watched>,
    /// Where reloads are counted.
    pub metrics: Arc<Metrics>,
    /// Where it is said what the last one came to.
    pub reloads: Arc<Reloads>,
    /// When they were.
    pub clock: Clock,
    /// What they left behind.
    pub retired: Retired,
}

/// Asks the thread to reload. Dropped, it ends the thread, which nobody waits for: it holds nothing
/// that would be lost.
#[derive(Clone, Debug)]
pub struct Handle(Option<SyncSender<Wanted>>);

/// Who waits for a reload, if anybody does: for what is wrong with the files.
type Wanted = Option<oneshot::Sender<Vec<String>>>;

/// Why nothing was reloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadError {
    /// There is no file.
    NoFiles,
    /// Others wait for theirs, or the thread has ended.
    Busy,
    /// These were refused, and what ran before goes on.
    Refused(Vec<String>),
}

impl Handle {
    /// Has every file read now, whether it has changed or not, and waits for what comes of it.
    ///
    /// # Errors
    /// There is none, or one was refused.
    pub async fn reload(&self) -> Result<(), ReloadError> {
        let sender = self.0.as_ref().ok_or(ReloadError::NoFiles)?;
        let (reply, refused) = oneshot::channel();
        sender.try_send(Some(reply)).map_err(|_| ReloadError::Busy)?;
        match refused.await {
            Ok(refused) if refused.is_empty() => Ok(()),
            Ok(refused) => Err(ReloadError::Refused(refused)),
            Err(_) => Err(ReloadError::Busy),
        }
    }

    /// Has every file read soon, whether it has changed or not. A few requests wait at a time: they
    /// stand for all that come until they are heard.
    pub fn request(&self) {
        let Some(sender) = &self.0 else {
            tracing::warn!("SIGHUP: no file was given at the start, so there is none to reload");
            return;
        };
        if let Err(TrySendError::Disconnected(_)) = sender.try_send(None) {
            tracing::error!("SIGHUP: the thread that reloads has ended; nothing has changed");
        }
    }
}

/// Starts the thread; without files there is none.
///
/// # Errors
/// It could not be started.
pub fn spawn(mut reloader: Reloader) -> io::Result<Handle> {
    reloader.files.retain(|watched| {
        let is_file = |file: &Followed| Sight::of(&file.path) != Sight::NoFile;
        let is_watched = watched.files.iter().all(is_file);
        if !is_watched {
            tracing::warn!(file = watched.name(), "not a plain file: it is not watched");
        }
        is_watched
    });
    if reloader.files.is_empty() {
        return Ok(Handle(None));
    }
    let (sender, requests) = sync_channel(WANTED_MAX);
    let thread = std::thread::Builder::new().name("reload".to_owned());
    thread.spawn(move || watch(reloader, &requests))?;
    Ok(Handle(Some(sender)))
}

fn watch(mut reloader: Reloader, requests: &Receiver<Wanted>) {
    loop {
        match requests.recv_timeout(LOOK_INTERVAL) {
            Ok(wanted) => {
                let refused = reloader.reload_all();
                if let Some(wanted) = wanted {
                    // Who asked may be gone.
                    let _ = wanted.send(refused);
                }
            }
            Err(RecvTimeoutError::Timeout) => reloader.look(),
            Err(RecvTimeoutError::Disconnected) => return,
        }
        reloader.retired.free();
    }
}

impl Reloader {
    /// Looks at every file, and reloads what has changed and come to rest.
    fn look(&mut self) {
        for index in 0..self.files.len() {
            if let Some(contents) = self.files.get_mut(index).and_then(Watched::look) {
                self.take(index, contents);
            }
        }
    }

    /// Reads every file, changed or not, and says what is wrong with those that were refused.
    fn reload_all(&mut self) -> Vec<String> {
        let mut refused = Vec::new();
        for index in 0..self.files.len() {
            if let Some(contents) = self.files.get_mut(index).map(Watched::read) {
                refused.extend(self.take(index, contents));
            }
        }
        refused
    }

    /// Hands new contents over, or that there are none, and says what came of it, and what is wrong.
    fn take(&mut self, index: usize, contents: Contents) -> Option<String> {
        let watched = self.files.get_mut(index)?;
        let taken = watched.take(contents)?;
        // First what is wrong, then that it is: who sees the count finds the reason.
        if let Err(reason) = &taken {
            let file = watched.name();
            tracing::error!(file, "not reloaded, what ran before goes on: {reason}");
        }
        let problems: Vec<&str> =
            self.files.iter().filter_map(|watched| watched.problem.as_deref()).collect();
        let now = self.clock.now();
        let result = if taken.is_ok() { Attempt::Ok } else { Attempt::Error };
        self.reloads.note(&problems, now);
        self.metrics.config_reloaded(result, problems.is_empty(), now);
        taken.err()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::reload::digest;
    use crate::limiter::time::Timestamp;
    use crate::metrics::registry::Build;

    const NOW: Timestamp = Timestamp::from_micros(1_767_225_600_000_000);

    struct Three {
        directory: tempfile::TempDir,
        reloader: Reloader,
        told: Arc<Mutex<Vec<String>>>,
    }

    impl Three {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let build = Build { version: "0", commit: "0", rustc: "0" };
            let metrics = Metrics::new(1, build, Duration::from_millis(10));
            let told = Arc::new(Mutex::new(Vec::new()));
            let file = |name: &str| {
                let path = directory.path().join(name);
                std::fs::write(&path, "old").unwrap();
                let (told, name) = (Arc::clone(&told), name.to_owned());
                let tell = move |content: Vec<u8>| {
                    let text = String::from_utf8(content).unwrap();
                    told.lock().push(format!("{name} {text}"));
                    if text == "worse" { Err("it is bad".to_owned()) } else { Ok(()) }
                };
                (path, tell)
            };
            let reload = |name: &str| {
                let (path, tell) = file(name);
                Watched::new(&path, digest(b"old"), OnChange::Reload(Box::new(tell)))
            };
            let (path, tell) = file("static");
            let tell = move |content: Result<Vec<u8>, String>| {
                let _ = tell(content.unwrap_or_else(String::into_bytes));
            };
            let tell = Watched::new(&path, digest(b"old"), OnChange::Tell(Box::new(tell)));
            let files = vec![reload("one"), tell, reload("two")];
            let clock = Clock::manual(NOW);
            let (reloads, retired) = (Arc::default(), Retired::default());
            let reloader = Reloader { files, metrics, reloads, clock, retired };
            Three { directory, reloader, told }
        }

        fn write(&self, name: &str, content: impl AsRef<[u8]>) {
            std::fs::write(self.directory.path().join(name), content).unwrap();
        }

        /// Three looks, which is one more than a file at rest needs; what was told in them.
        fn look(&mut self) -> Vec<String> {
            (0..3).for_each(|_| self.reloader.look());
            std::mem::take(&mut self.told.lock())
        }

        /// Reloads that went well, those that did not, whether all is well, and when it last was.
        fn figures(&self) -> [f64; 4] {
            let page = self.reloader.metrics.render(NOW);
            [
                "reloads_total{result=\"ok\"}",
                "reloads_total{result=\"error\"}",
                "last_reload_successful",
                "last_reload_success_timestamp_seconds",
            ]
            .map(|series| {
                let series = format!("tollgate_config_{series} ");
                page.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap()
            })
        }
    }

    #[test]
    fn each_file_has_its_say_and_one_that_is_refused_is_not_forgotten_over_another() {
        let mut three = Three::new();
        assert!(three.look().is_empty());
        three.write("one", "worse");
        three.write("static", "worse");
        assert_eq!(three.look(), ["one worse", "static worse"]);
        assert_eq!(three.figures(), [0.0, 1.0, 0.0, 0.0]);
        three.write("two", "good");
        assert_eq!(three.look(), ["two good"]);
        let now = NOW.as_micros() as f64 / 1e6;
        assert_eq!(three.figures(), [1.0, 1.0, 0.0, now], "the first is still refused");
        three.write("one", "good");
        assert_eq!(three.look(), ["one good"]);
        assert_eq!(three.figures(), [2.0, 1.0, 1.0, now]);
        // What is written again as it was is read, and no more.
        three.write("one", "good");
        assert!(three.look().is_empty());
        three.reloader.reload_all();
        assert_eq!(three.look(), ["one good", "static worse", "two good"]);
        assert_eq!(three.figures(), [4.0, 1.0, 1.0, now]);
    }

    #[test]
    fn of_a_pair_both_are_handed_over_once_neither_changes_any_more() {
        let mut three = Three::new();
        let at = |name: &str| three.directory.path().join(name);
        let (one, two) = (at("one"), at("two"));
        let told = Arc::clone(&three.told);
        let take = move |first: Vec<u8>, second: Vec<u8>| {
            let texts = [first, second].map(|it| String::from_utf8(it).unwrap());
            told.lock().push(texts.join(" "));
            if texts[0] == texts[1] { Ok(()) } else { Err("no pair".to_owned()) }
        };
        let files = [(one.as_path(), digest(b"old")), (two.as_path(), digest(b"old"))];
        three.reloader.files = vec![Watched::pair(files, take)];
        assert!(three.look().is_empty());
        // Both at once, and the second again before the first is judged.
        three.write("one", "new");
        three.reloader.look();
        three.write("two", "newer");
        three.reloader.look();
        assert!(three.told.lock().is_empty(), "the second may still be changing");
        assert_eq!(three.look(), ["new newer"]);
        assert_eq!(three.figures()[..3], [0.0, 1.0, 0.0]);
        // Either of them makes it good, and then it is.
        three.write("two", "new");
        assert_eq!(three.look(), ["new new"]);
        assert_eq!(three.figures()[..3], [1.0, 1.0, 1.0]);
        std::fs::remove_file(three.directory.path().join("two")).unwrap();
        three.write("one", "newest");
        assert!(three.look().is_empty());
        assert_eq!(three.figures()[..3], [1.0, 2.0, 0.0], "one is gone, and that is one error");
        three.write("two", "newest");
        assert_eq!(three.look(), ["newest newest"]);
        three.reloader.reload_all();
        assert_eq!(*three.told.lock(), ["newest newest"]);
        assert_eq!(three.figures()[..3], [3.0, 2.0, 1.0]);
    }

    #[test]
    fn what_cannot_be_read_is_told_once_and_never_handed_over() {
        let mut three = Three::new();
        three.look();
        std::fs::remove_file(three.directory.path().join("one")).unwrap();
        std::fs::remove_file(three.directory.path().join("static")).unwrap();
        three.write("two", vec![b'x'; FILE_BYTES_MAX + 1]);
        assert_eq!(three.look(), ["static cannot be read: no such file"]);
        assert_eq!(three.figures(), [0.0, 2.0, 0.0, 0.0]);
        assert!(three.look().is_empty());
        for name in ["one", "static", "two"] {
            three.write(name, "old");
        }
        assert_eq!(three.look(), ["one old", "static old", "two old"]);
        assert_eq!(three.figures()[..3], [2.0, 2.0, 1.0]);
    }
}
