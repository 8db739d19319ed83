//! What the last reload came to: for whoever looks, beside the metric that counts them.

use parking_lot::Mutex;

use crate::limiter::time::Timestamp;

/// Longest text that is kept of what was wrong, in bytes; the log has all of it.
pub const ERROR_BYTES_MAX: usize = 16 << 10;

/// The last reload.
#[derive(Debug, Default)]
pub struct Reloads(Mutex<LastReload>);

/// What it came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastReload {
    /// When it was; `None` if there was none since the start.
    pub at: Option<Timestamp>,
    /// What is wrong with the watched files that were refused when they were last read: file, line,
    /// what was found. `None` where each of them is in force.
    pub error: Option<Box<str>>,
}

impl Reloads {
    /// A reload was made, and these are the files that are not in force.
    pub fn note(&self, problems: &[&str], at: Timestamp) {
        let error = (!problems.is_empty()).then(|| cut(&problems.join("\n")).into());
        *self.0.lock() = LastReload { at: Some(at), error };
    }

    /// What is known of the last one.
    pub fn last(&self) -> LastReload {
        self.0.lock().clone()
    }
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(ERROR_BYTES_MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_kept_until_it_is_right() {
        let reloads = Reloads::default();
        assert_eq!(reloads.last(), LastReload::default());
        let at = Timestamp::from_micros;
        reloads.note(&["a: is bad", "b: is bad"], at(1));
        let error = Some("a: is bad\nb: is bad".into());
        assert_eq!(reloads.last(), LastReload { at: Some(at(1)), error });
        reloads.note(&[], at(2));
        assert_eq!(reloads.last(), LastReload { at: Some(at(2)), error: None });
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let reloads = Reloads::default();
        reloads.note(&[&"ä".repeat(ERROR_BYTES_MAX)], Timestamp::from_micros(1));
        assert_eq!(reloads.last().error.unwrap().len(), ERROR_BYTES_MAX);
    }
}
