//! Logs of anybody's, as `tollgate simulate` reads them.

use std::io::Cursor;
use std::sync::LazyLock;

use tollgate::policy::compiled::Policy;
use tollgate::sim::fit::fit;
use tollgate::sim::line::{Format, IdentityFrom, Line, Wanted};
use tollgate::sim::lines::Lines;
use tollgate::sim::logs::{Log, Merged};
use tollgate::sim::report;
use tollgate::sim::simulation::Simulation;
use tollgate::sim::suggest::suggest;
use tollgate::sim::summary::Summary;
use tollgate::sim::text::{Asked, text};

use super::defaults;

static POLICY: LazyLock<Policy> = LazyLock::new(|| defaults().policy);

/// The first byte says how the log is taken to be written and what is asked of it; the rest is the log,
/// packed or not.
///
/// Each line is a request or left out, and counted once; what is told of the log can be told; what the
/// quick reader of tollgate's own lines reads, a reader of JSON reads in the same way.
pub fn log_line(data: &[u8]) {
    let Some((flags, log)) = data.split_first() else { return };
    let identity = match flags >> 2 & 3 {
        0 => IdentityFrom::Log,
        1 => IdentityFrom::Address,
        2 => IdentityFrom::User,
        _ => IdentityFrom::Field("1".into()),
    };
    let tier_field = (flags & 16 != 0).then(|| "tier".into());
    let wanted = Wanted { identity, tier_field };
    let format = match flags & 3 {
        0 => None,
        1 => Some(Format::Combined),
        2 => Some(Format::Json),
        _ => Some(Format::Own),
    };
    for line in log.split(|byte| *byte == b'\n') {
        both_ways(line);
    }
    let Ok(lines) = Lines::new(Box::new(Cursor::new(log.to_vec()))) else { return };
    let mut logs = Merged::new(vec![Log::new("log".to_owned(), lines, format)]);
    let mut simulation = Simulation::new(&POLICY, Some(&POLICY), wanted).keeping().with_templates();
    if simulation.run(&mut logs, &mut |_| {}).is_err() {
        return;
    }
    let summary = Summary::of(&simulation);
    let left = summary.left_out.total;
    assert_eq!(summary.requests + left, summary.lines, "a line is lost or counted twice");
    let sum = |of: fn(&tollgate::sim::summary::Three) -> u64| -> u64 {
        summary.by_identity.0.iter().map(|(_, three)| of(three)).sum()
    };
    assert_eq!(sum(|it| it.requests), summary.requests);
    assert_eq!(sum(|it| it.blocked), summary.blocked);
    assert_eq!(summary.timeline.requests.iter().sum::<u64>(), summary.requests);
    // The policy beside itself.
    let against = summary.against.as_ref().expect("there is one to compare with");
    assert_eq!((against.newly_blocked, against.freed), (0, 0));
    let fitted = fit(&simulation, 0.1);
    let asked = Asked { logs: "log", policy: "built-in", against: Some("built-in") };
    text(&summary, &asked, Some(&fitted));
    let page = report::html(&summary, &asked, Some(&fitted)).expect("it can be written");
    assert_eq!(page.matches("</script>").count(), 2, "a log's text ends the page's own");
    suggest(&simulation, "log");
}

/// What is read as tollgate's own, beside the same as any JSON.
fn both_ways(line: &[u8]) {
    let wanted = Wanted::default();
    let own = Format::Own.read(line, &wanted);
    let json = Format::Json.read(line, &wanted);
    if let Ok(json) = json {
        let own = own.expect("JSON that is a request");
        let moment = own.moment;
        assert_eq!(own, Line { moment, ..json });
    }
}
