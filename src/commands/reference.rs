//! `tollgate schema configuration`: the page of everything that can be set, in Markdown.
//!
//! Made of the command line's own types and of those that read the files; what neither knows, exit
//! codes, signals, and how values are written, is said here.

use std::fmt::Write;

use clap::{Arg, Command, CommandFactory};

use crate::config::page::files;

use super::Cli;

const INTRODUCTION: &str = "\
# Configuration

<!-- Made from the types in src/config/ and src/commands/ by
     `tollgate schema configuration > docs/configuration.md`. -->

Everything that can be set: [options and variables](#command-line), [exit codes](#exit-codes),
[signals](#signals), and every key of [tollgate.yaml](#tollgateyaml), [tiers.yaml](#tiersyaml) and
[keys.yaml](#keysyaml). `tollgate schema configuration` prints this page for the version at hand.

What holds, first that is given: the option, the variable, the file, the default. `tollgate run`
serves with `--upstream` alone; every other option and every key has a default.

```sh
tollgate check --config tollgate.yaml --tiers tiers.yaml
```

says of both files what is wrong, all at once and with its place, and what is odd.

## Command line
";

const AFTERWARDS: &str = "
`--listen`, `--admin`, `--upstream` and `--redis` stand in for `server.listen` (and all of
`server.listeners`), `admin.listen`, `upstream.url` and `store.redis.url`. A variable that is set and
empty counts as given.

### Other variables

| variable | |
|---|---|
| `${NAME}` in a file | any variable, wherever a value stands; see [values](#how-values-are-written) |
| `SSL_CERT_FILE`, `SSL_CERT_DIR` | the authorities that are trusted in place of this machine's: towards a backend by `https`, a key set's URL, a database, a collector of traces |
| `NO_COLOR` | set and not empty: no colours on a terminal |
| `_RJEM_MALLOC_CONF` | options of the allocator, as jemalloc reads them; see [memory.md](memory.md) |

## Exit codes

| code | |
|---|---|
| 0 | fine: drained after a signal; `check` without errors, warnings or not; `health` of one that serves |
| 1 | failed while running: a port in use, a file of the log that cannot be opened, a second signal while draining; `health` of one that does not serve |
| 2 | wrong usage, an invalid file, or a test of the policy that fails. Nothing was served |

Results go to standard output, logs and errors to standard error.

## Signals

| signal | |
|---|---|
| SIGTERM, SIGINT | drain: `/readyz` says no, nothing new is accepted, what runs is finished for at most `server.drain_timeout`, then exit 0. A second one ends it at once, with 1 |
| SIGHUP | every followed file is read at once: policy, certificates, keys and secrets of tokens, API keys. The access log's file is opened anew. `tollgate.yaml` is compared with what runs, and the difference told |

## How values are written

- **Names** are `snake_case`. An unknown key is an error, with what was probably meant. A key that is
  `null` or has no value counts as not given.
- **Durations**: `250ms`, `5s`, `10m`, `1h30m`, `90d`; the units are `us`, `ms`, `s`, `m`, `h`, `d`, the
  longest first. A bare `0` is none, where that makes sense.
- **Sizes**: `65536`, `64KiB`, `10MiB`, `1GiB`, and `kB`, `MB`, `GB` of a thousand.
- **`true` and `false`** may be `on`, `off`, `yes`, `no` as well.
- **Environment**: `${NAME}` takes a variable, `${NAME:-default}` has a value where it is not set or
  empty, `$${` is a literal `${`. Without a default, a variable that is not set is an error. Inside
  `{ }` and `[ ]` of YAML the whole value needs quotes: `{ url: \"${URL}\" }`.
- **Secrets**: `type` says *secret*. Each has a twin that ends in `_file` and names a file, whose content
  is the secret without the white space around it; one of the two may be given. What is shown of a
  secret, in messages, logs and `explain`, is `***` or nothing.
- **Files** are named from the directory that tollgate was started in. A configuration or policy may
  be 8 MiB, a secret's file 64 KiB, a file of public keys 1 MiB.
- Anchors and aliases of YAML are read; a key that is there twice is an error.

In the tables, `[]` stands for each entry of a list and `NAME` for a name of your own. **Not built
yet** marks what this version knows, accepts at its default, and refuses at any other value. The
column *change* says when a change is in force: `restart`, or `reload`, while it runs.
";

/// The whole page.
pub fn page() -> String {
    let mut text = INTRODUCTION.to_owned();
    let command = Cli::command();
    for subcommand in command.get_subcommands() {
        if !subcommand.has_subcommands() {
            options(&mut text, subcommand.get_name(), subcommand);
        }
        for nested in subcommand.get_subcommands() {
            options(&mut text, &format!("{} {}", subcommand.get_name(), nested.get_name()), nested);
        }
    }
    text.push_str(AFTERWARDS);
    text + &files()
}

/// A subcommand's arguments.
fn options(text: &mut String, name: &str, command: &Command) {
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    // Writing to a string cannot fail, here and below.
    let _ = write!(text, "\n### `tollgate {name}`\n\n{about}.\n");
    text.push_str("\n| option | variable | default | |\n|---|---|---|---|\n");
    for argument in command.get_arguments().filter(|it| !it.is_global_set() && !is_own(it)) {
        let name = match argument.get_long() {
            Some(long) => format!("--{long} {}", value(argument)),
            None => value(argument),
        };
        let variable = argument.get_env().map(|it| format!("`{}`", it.to_string_lossy()));
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let (help, said) = match help.strip_suffix(']').and_then(|it| it.split_once(" [default: "))
        {
            Some((help, default)) => (help.to_owned(), Some(default.to_owned())),
            None => (help, None),
        };
        let given = argument.get_default_values().first().map(|it| it.to_string_lossy().into());
        let default = given.or(said).map(|it: String| format!("`{it}`"));
        let _ = writeln!(
            text,
            "| `{name}` | {} | {} | {help} |",
            variable.unwrap_or_default(),
            default.unwrap_or_default(),
        );
    }
}

/// Whether it is one of those that every command has.
fn is_own(argument: &Arg) -> bool {
    ["help", "version"].iter().any(|it| argument.get_id() == it)
}

/// What an argument's value is called, or which there are.
fn value(argument: &Arg) -> String {
    let words: Vec<String> =
        argument.get_possible_values().iter().map(|it| it.get_name().to_owned()).collect();
    if !words.is_empty() {
        return words.join("\\|");
    }
    argument.get_value_names().and_then(<[_]>::first).map(ToString::to_string).unwrap_or_default()
}
