//! Errors as text.

/// An error and what it came from, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let further = error.to_string();
        // Some say what they came from themselves.
        if !text.ends_with(&further) {
            text.push_str(": ");
            text.push_str(&further);
        }
        source = error.source();
    }
    text
}
