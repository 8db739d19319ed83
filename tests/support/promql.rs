//! As much of PromQL as it takes to say which series an expression asks for, and by which labels.
//! No parser: `promtool` says whether the expression is one.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

/// Label, operator, value.
pub type Matcher = (String, String, String);

/// What an expression asks for.
#[derive(Debug, Default)]
pub struct Asked {
    /// Names of series, each with its matchers.
    pub series: Vec<(String, Vec<Matcher>)>,
    /// Labels of `by`, `on` and their like.
    pub labels: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

const OPERATORS: [&str; 7] = ["and", "or", "unless", "offset", "bool", "inf", "nan"];
const LISTS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];

/// Reads an expression.
pub fn asked(expression: &str) -> Asked {
    let tokens = tokens(expression);
    let (mut asked, mut at) = (Asked::default(), 0);
    while at < tokens.len() {
        let next = tokens.get(at + 1);
        match &tokens[at] {
            Token::Word(_) if is_list(&tokens[at]) && next == Some(&Token::Sign('(')) => {
                let end = at + tokens[at..].iter().position(|it| *it == Token::Sign(')')).unwrap();
                asked.labels.extend(tokens[at + 2..end].iter().filter_map(word_of));
                at = end;
            }
            Token::Word(_) if is_list(&tokens[at]) => {}
            Token::Word(word) if OPERATORS.contains(&word.to_lowercase().as_str()) => {}
            Token::Word(word) if word.starts_with(|c: char| c.is_ascii_digit()) => {}
            Token::Word(_) if next == Some(&Token::Sign('(')) || next.is_some_and(is_list) => {}
            Token::Word(word) => asked.series.push((word.clone(), Vec::new())),
            Token::Sign('{') => {
                let end = at + tokens[at..].iter().position(|it| *it == Token::Sign('}')).unwrap();
                let matchers = &mut asked.series.last_mut().unwrap().1;
                for matcher in tokens[at + 1..end].split(|it| *it == Token::Sign(',')) {
                    let [Token::Word(label), operator @ .., Token::Text(value)] = matcher else {
                        assert!(matcher.is_empty(), "no matcher: {matcher:?}");
                        continue;
                    };
                    let signs = operator.iter().map(|it| match it {
                        Token::Sign(sign) => *sign,
                        other => panic!("no operator: {other:?}"),
                    });
                    matchers.push((label.clone(), signs.collect(), value.clone()));
                }
                at = end;
            }
            _ => {}
        }
        at += 1;
    }
    asked
}

fn is_list(token: &Token) -> bool {
    matches!(token, Token::Word(word) if LISTS.contains(&word.as_str()))
}

fn word_of(token: &Token) -> Option<String> {
    match token {
        Token::Word(word) => Some(word.clone()),
        _ => None,
    }
}

fn tokens(expression: &str) -> Vec<Token> {
    let (mut tokens, mut rest) = (Vec::new(), expression);
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_:.".contains(c);
        let length = match first {
            '"' | '\'' => rest[1..].find(first).unwrap() + 2,
            c if is_word(c) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
            c => c.len_utf8(),
        };
        match first {
            '"' | '\'' => tokens.push(Token::Text(rest[1..length - 1].to_owned())),
            c if is_word(c) => tokens.push(Token::Word(rest[..length].to_owned())),
            c if c.is_whitespace() => {}
            c => tokens.push(Token::Sign(c)),
        }
        rest = &rest[length..];
    }
    tokens
}
