//! Links in the documents: each leads to a file and a heading that are there, and each guide can be
//! reached. Nobody is asked on the network: of an address outside, only its form is looked at.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

/// What a reader begins with.
const ENTRANCES: [&str; 2] = ["README.md", "docs/README.md"];
/// Folders whose documents are checked, beside those in the root.
const FOLDERS: [&str; 2] = ["docs", "deploy"];

/// A link as it is written, and where.
#[derive(Debug)]
struct Link {
    line: usize,
    target: String,
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let mut anchors = HashMap::new();
    let mut count = 0;
    for document in documents() {
        let text = std::fs::read_to_string(root().join(&document)).unwrap();
        for Link { line, target } in links(&text) {
            count += 1;
            let place = format!("{}:{line}", document.display());
            if let Some(complaint) = complaint(&document, &target, &mut anchors) {
                wrong.push(format!("{place}: ({target}) {complaint}"));
            }
        }
    }
    assert!(wrong.is_empty(), "every link leads somewhere:\n  {}", wrong.join("\n  "));
    assert!(count > 100, "only {count} links were found");
}

#[test]
fn every_guide_can_be_reached() {
    let mut reached: BTreeSet<PathBuf> = ENTRANCES.iter().map(PathBuf::from).collect();
    let mut open: Vec<PathBuf> = reached.iter().cloned().collect();
    while let Some(document) = open.pop() {
        let Ok(text) = std::fs::read_to_string(root().join(&document)) else { continue };
        for link in links(&text).into_iter().filter(|link| !is_outside(&link.target)) {
            let path = link.target.split('#').next().unwrap();
            let Some(path) = beside(&document, path).filter(|_| !path.is_empty()) else { continue };
            // A folder shows what is in it.
            let inside = if root().join(&path).is_dir() { entries(&path) } else { vec![path] };
            for path in inside {
                if reached.insert(path.clone()) && path.extension().is_some_and(|it| it == "md") {
                    open.push(path);
                }
            }
        }
    }
    let mut files = Vec::new();
    walk(Path::new("docs"), &mut files);
    assert!(files.len() > 10, "docs/ was not found");
    let lost: Vec<&PathBuf> = files.iter().filter(|file| !reached.contains(*file)).collect();
    assert!(lost.is_empty(), "no way leads from {ENTRANCES:?} to {lost:?}");
}

/// What is wrong with a link of a document.
fn complaint(
    document: &Path,
    target: &str,
    anchors: &mut HashMap<PathBuf, HashSet<String>>,
) -> Option<String> {
    if is_outside(target) {
        return (!is_address(target)).then(|| "is no address".to_owned());
    }
    let (path, anchor) = target.split_once('#').map_or((target, None), |(p, a)| (p, Some(a)));
    let Some(path) = (if path.is_empty() { Some(document.into()) } else { beside(document, path) })
    else {
        return Some("leaves the repository".to_owned());
    };
    if !exists(&path) {
        return Some(format!("leads to {}, which is not there", path.display()));
    }
    let anchor = anchor?;
    if path.extension().is_none_or(|it| it != "md") {
        return Some("leads to a heading of what is no document".to_owned());
    }
    let known = anchors
        .entry(path.clone())
        .or_insert_with(|| headings(&std::fs::read_to_string(root().join(&path)).unwrap()));
    (!known.contains(anchor)).then(|| format!("{} has no such heading", path.display()))
}

fn is_outside(target: &str) -> bool {
    target.contains("://") || target.starts_with("mailto:")
}

/// `https`, a host with a dot in it, and nothing that an address cannot hold.
fn is_address(target: &str) -> bool {
    let Some(rest) = target.strip_prefix("https://") else { return false };
    let host = rest.split(['/', '?', '#']).next().unwrap();
    let is_host = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
    let is_sound = |c: char| c.is_ascii_graphic() && !"<>\"{}|\\^`".contains(c);
    host.contains('.') && host.chars().all(is_host) && target.chars().all(is_sound)
}

/// The links of a document: those in code are none.
fn links(text: &str) -> Vec<Link> {
    let mut found = Vec::new();
    let lines = prose(text);
    for (line, text) in lines.iter().map(|(line, text)| (*line, without_code(text))) {
        for (at, _) in text.match_indices("](") {
            let rest = &text[at + 2..];
            let end = rest.find(')').unwrap_or(rest.len());
            // A title may stand behind the address.
            let target = rest[..end].split(" \"").next().unwrap().trim();
            found.push(Link { line, target: target.to_owned() });
        }
        let definition = text.trim_start().strip_prefix('[').and_then(|it| it.split_once("]: "));
        if let Some((_, target)) = definition {
            found.push(Link { line, target: target.trim().to_owned() });
        }
    }
    found
}

/// The lines that are in no block of code, by number.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut fence = None;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let marks = line.trim_start().chars().take_while(|c| *c == '`').count();
        match fence {
            None if marks >= 3 => fence = Some(marks),
            Some(open) if marks >= open => fence = None,
            Some(_) => {}
            None => lines.push((index + 1, line)),
        }
    }
    lines
}

/// A line with the insides of its code blanked.
fn without_code(line: &str) -> String {
    let parts: Vec<&str> = line.split('`').collect();
    // An odd one without its end is a backtick and no code.
    let last = parts.len() - 1;
    let keep = |(index, part): (usize, &&str)| {
        let is_code = index % 2 == 1 && index != last;
        if is_code { " ".repeat(part.chars().count()) } else { (*part).to_owned() }
    };
    parts.iter().enumerate().map(keep).collect()
}

/// What the headings of a document are called in links, as GitHub makes it.
fn headings(text: &str) -> HashSet<String> {
    let mut known = HashSet::new();
    let mut times: HashMap<String, usize> = HashMap::new();
    for (_, line) in prose(text) {
        let depth = line.chars().take_while(|c| *c == '#').count();
        if (1..=6).contains(&depth) && line[depth..].starts_with(' ') {
            let anchor = anchor(&shown(&line[depth + 1..]));
            let time = times.entry(anchor.clone()).or_default();
            known.insert(if *time == 0 { anchor } else { format!("{anchor}-{time}") });
            *time += 1;
        }
        for name in ["id=\"", "name=\""] {
            let named = line.split(name).skip(1).filter_map(|rest| rest.split('"').next());
            known.extend(named.map(str::to_owned));
        }
    }
    known
}

/// A heading without its links' targets.
fn shown(heading: &str) -> String {
    let mut text = String::new();
    let mut rest = heading.trim();
    while let Some((before, after)) = rest.split_once("](") {
        text.push_str(before);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    text + rest
}

fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The path from the root of what a document calls `path`; `None` outside of the repository.
fn beside(document: &Path, path: &str) -> Option<PathBuf> {
    let mut whole = document.parent().unwrap().to_path_buf();
    for component in Path::new(path).components() {
        match component {
            Component::ParentDir => {
                if !whole.pop() {
                    return None;
                }
            }
            Component::Normal(name) => whole.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    Some(whole)
}

/// Whether it is there under this very name, also where files are found without regard to case.
fn exists(path: &Path) -> bool {
    path.iter().try_fold(PathBuf::new(), |folder, name| {
        let path = folder.join(name);
        entries(&folder).contains(&path).then_some(path)
    }) == Some(path.to_path_buf())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(root().join(folder)) else { return Vec::new() };
    entries.map(|entry| folder.join(entry.unwrap().file_name())).collect()
}

fn documents() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        entries(Path::new("")).into_iter().filter(|path| root().join(path).is_file()).collect();
    FOLDERS.iter().for_each(|folder| walk(Path::new(folder), &mut files));
    files.retain(|file| file.extension().is_some_and(|it| it == "md"));
    files.sort();
    files
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for path in entries(folder) {
        if path.file_name().is_some_and(|name| name == "node_modules") {
            continue;
        }
        if root().join(&path).is_dir() {
            walk(&path, files);
        } else {
            files.push(path);
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The reader of documents is held to a few awkward lines.
mod reader {
    use super::*;

    #[test]
    fn links_in_code_are_none() {
        let text = "[a](b.html#c) `[no](x)` ![d](e.svg \"a title\")\n```\n[no](y)\n```\n[r]: https://f.g\n\
                    over\ntwo lines](h.html), one ` alone [i](j)";
        let targets: Vec<(usize, String)> =
            links(text).into_iter().map(|link| (link.line, link.target)).collect();
        let expected = [(1, "b.html#c"), (1, "e.svg"), (5, "https://f.g"), (7, "h.html"), (7, "j")];
        assert_eq!(targets, expected.map(|(line, target)| (line, target.to_owned())));
    }

    #[test]
    fn headings_are_called_as_github_calls_them() {
        let text = "# A `b.c[]`: d, e-f\n## Twice\n## Twice\n```\n# no\n```\n### [x](y) _z_ é\n<a id=\"q\">";
        let found = headings(text);
        let expected = ["a-bc-d-e-f", "twice", "twice-1", "x-_z_-é", "q"];
        assert_eq!(found, expected.map(str::to_owned).into());
    }

    #[test]
    fn addresses_have_a_form() {
        for good in ["https://a.b", "https://a.b/c?d=e#f", "https://doi.org/10.1007/978-3_27"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["http://a.b", "https://a", "https:/a.b", "https://a.b/c d", "mailto:a@b.c"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn paths_stay_inside() {
        let from = Path::new("docs/a");
        assert_eq!(beside(from, "../config/x.yaml"), Some("config/x.yaml".into()));
        assert_eq!(beside(from, "./b"), Some("docs/b".into()));
        assert_eq!(beside(from, "../../x"), None);
        assert_eq!(beside(from, "/etc/passwd"), None);
        assert!(exists(Path::new("docs/where-it-stands.svg")) && !exists(Path::new("Docs")));
    }
}
