//! `tollgate completions` and `tollgate man`: what shells and `man` know of the command line. Both
//! are made of the types that parse it, so that they cannot say anything else.

use std::fmt::Write as _;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::{Cli, CompletionsArgs, Failure, ManArgs, VERSION, print};

/// Prints a script that completes the command line.
pub fn completions(args: CompletionsArgs) {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "tollgate", &mut script);
    print(String::from_utf8_lossy(&script).trim_end());
}

/// Prints a page of the manual. Wrong usage ends the program, as any other does.
///
/// # Errors
/// None that memory does not make.
pub fn man(args: &ManArgs) -> Result<(), Failure> {
    // `tollgate help run` is no command that has a page.
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    let command = match &args.command {
        None => root,
        Some(name) => match root.find_subcommand(name) {
            Some(command) => command.clone(),
            None => unknown(&mut root, name),
        },
    };
    print(page(command).context("the page").map_err(Failure::Running)?.trim_end());
    Ok(())
}

fn unknown(root: &mut Command, name: &str) -> ! {
    let known: Vec<&str> = root.get_subcommands().map(Command::get_name).collect();
    let message = format!("no command is called '{name}', expected one of: {}", known.join(", "));
    root.error(ErrorKind::InvalidValue, message).exit()
}

fn page(command: Command) -> anyhow::Result<String> {
    let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_commands = command.has_subcommands();
    let man = Man::new(command).source(format!("tollgate {VERSION}")).manual("tollgate");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    Ok(String::from_utf8(page)? + &examples_and_notes(&after))
}

/// What `--help` ends with: examples stand as they are, what follows them is text.
fn examples_and_notes(after: &str) -> String {
    let mut text = String::new();
    for (index, paragraph) in after.split("\n\n").filter(|it| !it.is_empty()).enumerate() {
        let paragraph = escaped(paragraph);
        // Writing into a string cannot fail.
        let _ = match (paragraph.strip_prefix("Examples:\n"), index) {
            (Some(examples), _) => writeln!(text, ".SH EXAMPLES\n.nf\n{examples}\n.fi"),
            (None, 1) => writeln!(text, ".SH NOTES\n{paragraph}"),
            (None, _) => writeln!(text, ".PP\n{paragraph}"),
        };
    }
    text
}

/// No character of it is an instruction to roff.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines = text.lines().map(|line| match line.starts_with(['.', '\'']) {
        true => format!("\\&{line}"),
        false => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_help_ends_with_is_examples_and_notes() {
        assert_eq!(
            examples_and_notes("Examples:\n  a --b \\c\n\n.one\ntwo\n\nthree"),
            ".SH EXAMPLES\n.nf\n  a \\-\\-b \\ec\n.fi\n.SH NOTES\n\\&.one\ntwo\n.PP\nthree\n"
        );
        assert_eq!(examples_and_notes(""), "");
    }
}
