//! A replay's summary as one page of HTML, which asks for nothing but itself.

use serde::Serialize;
use serde_json::Value;

use super::fit::Fitted;
use super::summary::Summary;
use super::text::Asked;

const PAGE: &str = include_str!("report.html");
/// Where the page has its numbers.
const PLACE: &str = "<script type=\"application/json\" id=\"data\">{}</script>";

/// A summary with what belongs to it, its names in the order in which they are told.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    asked: Option<&'a Asked<'a>>,
    #[serde(flatten)]
    summary: &'a Summary,
    #[serde(skip_serializing_if = "Option::is_none")]
    proposed: Option<Value>,
}

/// All of it, as programs read it.
///
/// # Errors
/// None: everything in it can be written as JSON.
pub fn json(summary: &Summary, fitted: Option<&Fitted>) -> serde_json::Result<String> {
    let proposed = fitted.map(Fitted::json);
    serde_json::to_string_pretty(&Whole { asked: None, summary, proposed })
}

/// The page.
///
/// # Errors
/// None, likewise.
pub fn html(
    summary: &Summary,
    asked: &Asked<'_>,
    fitted: Option<&Fitted>,
) -> serde_json::Result<String> {
    let mut shown = summary.clone();
    shown.by_identity.0.clear();
    let proposed = fitted.map(Fitted::json);
    let whole = Whole { asked: Some(asked), summary: &shown, proposed };
    // A text of a log must not end the element that holds it.
    let data = serde_json::to_string(&whole)?.replace('<', "\\u003c");
    let filled = format!("<script type=\"application/json\" id=\"data\">{data}</script>");
    Ok(PAGE.replacen(PLACE, &filled, 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_a_place_for_its_numbers() {
        assert_eq!(PAGE.matches(PLACE).count(), 1);
    }
}
