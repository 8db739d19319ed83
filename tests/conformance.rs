//! What a proxy must do, line by line: one test for each, named after it, with the text that it comes
//! from. The bytes are in `support/catalogue`; the same run against nginx and HAProxy with
//! `tests/long.sh conformance`, which writes the table in `docs/conformance.md`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]
#![allow(clippy::disallowed_methods, reason = "tests wait by the real time, and end")]

#[path = "support/catalogue/mod.rs"]
mod catalogue;
#[path = "support/h2frames.rs"]
mod h2frames;
#[path = "support/conformance.rs"]
mod harness;
mod support;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use harness::{Case, Checked, Kind, PEERS};

/// Runs the cases of a line against tollgate, some at a time: most of them wait.
fn holds(name: &str) {
    let line = catalogue::lines().into_iter().find(|line| line.name == name);
    let line = line.unwrap_or_else(|| panic!("the catalogue has no {name}"));
    let cases: Vec<&Case> = line.cases.iter().collect();
    let failed: Vec<String> = run(&cases, Kind::Tollgate, 4)
        .into_iter()
        .zip(&cases)
        .filter_map(|(checked, case)| match (checked?, case.known) {
            (Ok(()), None) | (Err(_), Some(_)) => None,
            (Ok(()), Some(why)) => Some(format!("{} passes: not {why}", case.name)),
            (Err(what), None) => Some(format!("{} ({:?}): {what}", case.name, case.profile)),
        })
        .collect();
    assert!(failed.is_empty(), "{} ({}):\n{}", line.name, line.source, failed.join("\n"));
}

fn run(cases: &[&Case], kind: Kind, at_once: usize) -> Vec<Option<Checked>> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(vec![None; cases.len()]);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(index) = Some(next.fetch_add(1, Ordering::AcqRel))
                    && let Some(case) = cases.get(index)
                {
                    let checked = case.run(kind);
                    results.lock().unwrap()[index] = checked;
                }
            });
        }
    });
    results.into_inner().unwrap()
}

macro_rules! lines {
    ($($(#[$text:meta])+ $name:ident;)+) => {
        const TESTED: &[&str] = &[$(stringify!($name)),+];
        $($(#[$text])+ #[test] fn $name() { holds(stringify!($name)); })+
    };
}

lines! {
    /// RFC 9110 §8.6; CVE-2023-40225.
    framing_content_length_digits_only;
    /// RFC 9112 §6.3(5).
    framing_differing_content_lengths;
    /// RFC 9112 §6.1, §6.3(3).
    framing_content_length_beside_transfer_encoding;
    /// RFC 9112 §6.3(4).
    framing_transfer_encoding_other_than_chunked;
    /// RFC 9112 §6.1; CVE-2026-2835.
    framing_transfer_encoding_in_http_1_0;
    /// RFC 9112 §6.1, §7.
    framing_transfer_encodings_never_as_they_came;
    /// RFC 9112 §2.2, §5.1, §5.2.
    framing_whitespace_before_colon_and_folded_lines;
    /// RFC 9112 §2.2; RFC 9110 §5.5.
    framing_bare_cr_and_nul_in_the_head;
    /// RFC 9112 §7.1; CVE-2025-22871.
    framing_bare_lf_ends_no_chunk;
    /// RFC 9112 §7.1.
    framing_chunk_size_lines;
    /// RFC 9112 §7.1.1; CVE-2023-39326, CVE-2026-2332.
    framing_chunk_extensions;
    /// RFC 9110 §6.5.1.
    framing_trailers_are_not_merged;
    /// RFC 9112 §6, §7.1.
    framing_bodies_are_framed_anew;
    /// RFC 9112 §6.3, §8.
    framing_error_after_the_head_aborts_the_upstream;
    /// RFC 9112 §9.3; CVE-2025-4366.
    framing_a_refused_body_is_no_next_request;
    /// CVE-2025-64484.
    framing_underscores_shadow_nothing;
    /// RFC 9112 §3.2.
    target_host_missing_twice_or_invalid;
    /// RFC 9112 §3.2.2.
    target_absolute_form;
    /// RFC 9110 §9.3.6.
    target_connect_opens_no_tunnel;
    /// RFC 9110 §7.7.
    target_bytes_pass_as_they_are_or_not_at_all;
    /// RFC 3986 §3.3.
    target_honest_paths_pass;
    /// RFC 9112 §3.2; CVE-2023-45539, GHSA-fvhj-4qfh-q2hm.
    target_fragment_is_never_forwarded;
    /// RFC 9112 §3.
    target_long_request_lines;
    /// RFC 9112 §3; RFC 6585 §5.
    target_limits_answer_with_a_body;
    /// RFC 9110 §9.1, §16.1.
    target_unknown_methods_pass;
    /// RFC 9112 §3, §2.3.
    target_what_is_no_request_line;
    /// RFC 9110 §7.6.1.
    fields_hop_by_hop_stay_on_their_connection;
    /// RFC 9110 §7.6.1; CVE-2024-45410, CVE-2025-48865.
    fields_connection_names_nothing_that_others_need;
    /// RFC 9110 §7.8; RFC 9113 §3.1.
    fields_h2c_never_reaches_the_origin;
    /// RFC 7239 §8.1.
    fields_forwarded_come_from_the_proxy;
    /// RFC 7239 §5.2, §8.1.
    fields_the_address_of_a_caller;
    /// The PROXY protocol, section 2: only from those who are known to send it.
    fields_proxy_protocol_is_not_believed;
    /// RFC 9110 §5.3; RFC 6265 §3.
    fields_order_and_number_are_kept;
    /// RFC 9110 §5.5.
    fields_obs_text_passes;
    /// RFC 9110 §7.6.3.
    fields_via_names_the_proxy;
    /// RFC 9112 §6.3(1); RFC 9110 §8.6, §9.3.2.
    bodies_head_204_and_304_have_none;
    /// RFC 9112 §6.3, §9.2.
    bodies_bytes_behind_an_answer_go_to_nobody;
    /// RFC 9112 §6.3(4), §6.3(5), §2.2.
    bodies_answers_with_faulty_framing_are_502;
    /// RFC 9112 §8.
    bodies_cut_short_are_seen_to_be;
    /// RFC 9112 §6.1, §9.3; RFC 9110 §15.2.
    bodies_for_http_1_0;
    /// RFC 9110 §10.1.1; CVE-2024-24791.
    bodies_expect_100_continue;
    /// RFC 9112 §9.3; RFC 9110 §10.1.1.
    bodies_an_early_answer_is_delivered;
    /// RFC 9110 §15.2.
    bodies_interim_answers_are_not_the_answer;
    /// RFC 9112 §7.1; RFC 9110 §7.6.
    bodies_stream_both_ways;
    /// RFC 9110 §6.5.
    bodies_trailers_pass;
    /// RFC 9110 §15.6.3, §15.6.5.
    upstream_failures_have_their_status;
    /// RFC 9110 §15.6.5.
    upstream_timeouts_are_of_silence;
    /// RFC 9112 §9.3.1.
    upstream_an_idle_close_is_invisible;
    /// RFC 9110 §9.2.2.
    upstream_a_post_never_arrives_twice;
    /// RFC 9110 §7.6.
    upstream_a_client_that_leaves_cancels;
    /// RFC 9112 §9: at most 64 MiB.
    upstream_memory_is_bounded;
    /// RFC 9112 §9.3.2.
    connections_pipelined_requests_are_answered_in_order;
    /// RFC 9110 §7.8; CVE-2026-2833, CVE-2024-23326.
    connections_bytes_behind_an_upgrade_wait_for_the_101;
    /// RFC 6455 §4; RFC 9110 §7.8.
    connections_a_tunnel_passes_every_byte;
    /// RFC 9110 §7.8.
    connections_an_upgrade_needs_http_1_1_and_the_option;
    /// RFC 9112 §9.6.
    connections_a_drain_finishes_what_is_in_flight;
    /// RFC 9112 §9.6.
    connections_a_client_that_half_closes_gets_its_answer;
    /// RFC 9113 §8.2.1.
    http2_names_and_values_make_no_lines;
    /// RFC 9113 §8.1.1, §8.3.
    http2_pseudo_fields_make_no_lines;
    /// RFC 9113 §8.2.2.
    http2_fields_of_a_connection_are_malformed;
    /// RFC 9113 §8.1.1.
    http2_content_length_agrees_with_the_content;
    /// RFC 9113 §8.2.3.
    http2_cookies_are_joined;
    /// RFC 9113 §8.3.1.
    http2_one_host_from_the_authority;
    /// RFC 9112 §6.
    http2_bodies_are_framed_for_the_origin;
    /// RFC 9113 §10.5; CVE-2023-44487, CVE-2025-8671, CVE-2019-9511 to 9518, RUSTSEC-2024-0332.
    http2_floods_hurt_nobody_else;
    /// RFC 6585 §4.
    limits_one_caller_has_one_bucket;
    /// RFC 3986 §6.2.2; GHSA-xcx5-93pw-jw2w, CVE-2021-29492, GHSA-gm3x-23wp-hc2c.
    limits_hold_for_every_spelling_of_a_path;
    /// X-Original-URL and X-Rewrite-URL of Symfony and IIS.
    limits_fields_that_rewrite_change_nothing;
    /// RFC 6585 §4.
    limits_check_and_count_is_one_step;
    /// RFC 6585 §4; RFC 9110 §10.2.3.
    limits_a_refusal_is_429;
}

#[test]
fn every_line_of_the_catalogue_has_its_test() {
    let lines = catalogue::lines();
    let listed: BTreeSet<&str> = lines.iter().map(|line| line.name).collect();
    assert_eq!(listed, TESTED.iter().copied().collect());
    assert!(lines.iter().all(|line| !line.cases.is_empty()));
}

/// Cases that passed, of how many.
#[derive(Clone, Copy, Default)]
struct Tally {
    passed: usize,
    of: usize,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.of += other.of;
    }

    /// As a cell of the table.
    fn cell(self) -> String {
        match self.of {
            0 => "n/a".to_owned(),
            of if of == self.passed => format!("{of} of {of}"),
            of => format!("**{} of {of}**", self.passed),
        }
    }

    fn share(self) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
        let share = self.passed as f64 / self.of.max(1) as f64;
        share
    }
}

/// The table of `docs/conformance.md`: every case against all three.
#[test]
#[ignore = "needs nginx and haproxy, and some minutes: tests/long.sh conformance"]
fn table_beside_the_peers() {
    let all = [Kind::Tollgate, PEERS[0], PEERS[1]];
    let (mut rows, mut failures) = (String::new(), String::new());
    let mut groups: Vec<(&str, [Tally; 3])> = Vec::new();
    for line in catalogue::lines() {
        let cases: Vec<&Case> = line.cases.iter().collect();
        if groups.last().is_none_or(|(group, _)| *group != line.group) {
            groups.push((line.group, Default::default()));
        }
        let mut cells = Vec::new();
        for (column, kind) in all.into_iter().enumerate() {
            let mut tally = Tally::default();
            for (checked, case) in run(&cases, kind, 12).into_iter().zip(&cases) {
                let Some(checked) = checked else { continue };
                tally.add(Tally { passed: usize::from(checked.is_ok()), of: 1 });
                if let Err(what) = checked {
                    println!("{kind:?} {} {}: {what}", line.name, case.name);
                    let known = case
                        .known
                        .filter(|_| kind == Kind::Tollgate)
                        .map(|why| format!(": {why}"))
                        .unwrap_or_default();
                    let name =
                        case.name.replace('`', "'").replace('\n', "\\n").replace('\r', "\\r");
                    failures.push_str(&format!("- {kind:?}, `{}`: `{name}`{known}\n", line.name));
                }
            }
            groups.last_mut().unwrap().1[column].add(tally);
            cells.push(tally.cell());
        }
        rows.push_str(&format!("| `{}` | {} | {} |\n", line.name, line.source, cells.join(" | ")));
    }
    let mut table = String::from("| group | tollgate | nginx | HAProxy |\n|---|---|---|---|\n");
    for (group, tallies) in &groups {
        let cells: Vec<String> = tallies.iter().map(|it| it.cell()).collect();
        table.push_str(&format!("| {} | {} |\n", group.replace('_', " "), cells.join(" | ")));
    }
    table.push_str("\n| line | source | tollgate | nginx | HAProxy |\n|---|---|---|---|---|\n");
    table.push_str(&rows);
    table.push_str(&format!("\nWhat did not pass:\n\n{failures}"));
    let versions = harness::versions().join(", ");
    write_between_markers(&format!("Of {versions}.\n\n{table}"));
    for (group, [own, nginx, haproxy]) in groups {
        let best = nginx.share().max(haproxy.share());
        assert!(own.share() >= best, "{group}: a peer is ahead");
    }
}

fn write_between_markers(table: &str) {
    const MARKERS: [&str; 2] = ["<!-- the table begins -->\n", "<!-- the table ends -->\n"];
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/conformance.md");
    let text = std::fs::read_to_string(&file).unwrap();
    let (before, rest) = text.split_once(MARKERS[0]).unwrap();
    let (_, after) = rest.split_once(MARKERS[1]).unwrap();
    let text = format!("{before}{}\n{table}\n{}{after}", MARKERS[0], MARKERS[1]);
    std::fs::write(file, text).unwrap();
}
