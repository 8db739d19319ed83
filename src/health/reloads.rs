//! What the last reload came to, for eyes.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::limiter::time::Timestamp;

/// Longest message that is kept of one file, in bytes.
const MESSAGE_BYTES_MAX: usize = 4_096;

/// What the last reload came to.
#[derive(Debug, Default)]
pub struct Reloads(Mutex<Last>);

/// The same, as it stands.
#[derive(Clone, Debug, Default)]
pub struct Last {
    /// When a file was last read anew; `None`: never since the start.
    pub at: Option<Timestamp>,
    /// What is wrong with files that were refused and have not been good since, by file.
    pub refused: BTreeMap<String, String>,
}

impl Reloads {
    /// A file was read anew at that time; an error says why it was refused.
    pub fn note(&self, file: &str, result: &Result<(), String>, at: Timestamp) {
        let mut last = self.0.lock();
        last.at = Some(at);
        match result {
            Ok(()) => {
                last.refused.remove(file);
            }
            Err(reason) => {
                let end = reason.floor_char_boundary(MESSAGE_BYTES_MAX);
                let reason = reason.get(..end).unwrap_or_default().to_owned();
                // One for each watched file, of which there are few.
                last.refused.insert(file.to_owned(), reason);
            }
        }
    }

    /// As it stands.
    pub fn last(&self) -> Last {
        self.0.lock().clone()
    }
}
