//! What iptables-save prints, as far as needed: any line that appends a rule becomes a rule; what is not understood in it
//! stays in it as a match that nobody knows.

use std::collections::BTreeMap;

/// The tables of one iptables-save output, by name.
pub(crate) type Tables = BTreeMap<String, Table>;

/// The chains of a table, by name, each with its rules in order.
pub(crate) type Table = BTreeMap<String, Vec<Rule>>;

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// All of them have to apply.
    pub(crate) matches: Vec<Match>,
    pub(crate) target: Target,
    /// The comment, or an empty text.
    pub(crate) comment: String,
    /// The line it was read from.
    pub(crate) text: String,
}

/// One condition of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Match {
    /// The `-m` it belongs to; empty for the built-in ones.
    pub(crate) module: String,
    pub(crate) negated: bool,
    /// As iptables-save writes it, with its dashes; empty for a module without options.
    pub(crate) option: String,
    pub(crate) values: Vec<String>,
}

/// What a rule does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Target {
    #[default]
    None,
    /// `-j` with the target's own options.
    Jump(String, Vec<String>),
    /// `-g`.
    Goto(String),
}

impl Rule {
    /// The name after `-j` or `-g`.
    pub(crate) fn target_name(&self) -> &str {
        match &self.target {
            Target::None => "",
            Target::Jump(name, _) | Target::Goto(name) => name,
        }
    }

    /// The condition with this option, if there is one.
    pub(crate) fn option(&self, option: &str) -> Option<&Match> {
        self.matches.iter().find(|condition| condition.option == option)
    }
}

impl Match {
    /// Its first value, or an empty text.
    pub(crate) fn value(&self) -> &str {
        self.values.first().map_or("", String::as_str)
    }
}

/// Reads the output of iptables-save.
pub(crate) fn parse(saved: &str) -> Tables {
    let mut tables = Tables::new();
    let mut table = String::new();
    for line in saved.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
            tables.entry(table.clone()).or_default();
        } else if let Some(chain) = line.strip_prefix(':').and_then(|rest| rest.split_whitespace().next()) {
            tables.entry(table.clone()).or_default().entry(chain.to_owned()).or_default();
        } else if line.starts_with("-A ") {
            let mut words = words(line).into_iter().skip(1);
            let chain = words.next().map(|word| word.text).unwrap_or_default();
            tables.entry(table.clone()).or_default().entry(chain).or_default().push(rule(words, line));
        }
    }
    tables
}

/// A word of a rule. Only one without quotes can be an option or a negation.
#[derive(Debug, Default, PartialEq, Eq)]
struct Word {
    text: String,
    quoted: bool,
}

impl Word {
    fn is_option(&self) -> bool {
        !self.quoted && self.text.starts_with('-') && self.text.len() > 1
    }

    fn is_negation(&self) -> bool {
        !self.quoted && self.text == "!"
    }
}

/// Splits at spaces. Double quotes hold a word together, a backslash in them takes the next character as it is.
fn words(line: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut word: Option<Word> = None;
    let mut inside = false;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                inside = !inside;
                word.get_or_insert_default().quoted = true;
            }
            '\\' if inside => word.get_or_insert_default().text.extend(characters.next()),
            ' ' | '\t' if !inside => words.extend(word.take()),
            other => word.get_or_insert_default().text.push(other),
        }
    }
    words.extend(word);
    words
}

fn rule(words: impl Iterator<Item = Word>, text: &str) -> Rule {
    let mut rule = Rule { matches: Vec::new(), target: Target::None, comment: String::new(), text: text.to_owned() };
    let mut words = words.peekable();
    let mut module = String::new();
    // The last `-m` has had no option so far: its mere presence is the condition.
    let mut bare = false;
    let mut negated = false;
    while let Some(word) = words.next() {
        if word.is_negation() {
            negated = true;
            continue;
        }
        // Whoever names a chain or writes a comment may begin it with a dash.
        let mut one = || words.next().map(|word| word.text).unwrap_or_default();
        match if word.is_option() { word.text.as_str() } else { "" } {
            "-j" => rule.target = Target::Jump(one(), words.by_ref().map(|word| word.text).collect()),
            "-g" => rule.target = Target::Goto(one()),
            "--comment" => rule.comment = one(),
            "-m" => {
                let before = std::mem::replace(&mut module, one());
                if bare {
                    rule.matches.push(Match { module: before, ..Match::default() });
                }
                bare = !matches!(module.as_str(), "comment" | "tcp" | "udp" | "sctp" | "icmp" | "icmp6");
            }
            "-s" | "-d" | "-i" | "-o" | "-p" => {
                let values = vec![one()];
                rule.matches.push(Match { module: String::new(), negated, option: word.text, values });
            }
            _ => {
                bare = false;
                let mut values = Vec::new();
                while let Some(value) = words.next_if(|word| !word.is_option() && !word.is_negation()) {
                    values.push(value.text);
                }
                rule.matches.push(Match { module: module.clone(), negated, option: word.text, values });
            }
        }
        negated = false;
    }
    if bare {
        rule.matches.push(Match { module, ..Match::default() });
    }
    rule
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn only(line: &str) -> Rule {
        let tables = parse(&format!("*nat\n{line}\nCOMMIT\n"));
        tables["nat"].values().flatten().next().unwrap().clone()
    }

    fn condition(module: &str, negated: bool, option: &str, values: &[&str]) -> Match {
        let values = values.iter().map(|&value| value.to_owned()).collect();
        Match { module: module.to_owned(), negated, option: option.to_owned(), values }
    }

    #[test]
    fn options_belong_to_their_module() {
        let rule = only(
            "-A C -s 10.0.0.0/8 ! -o br0 -p tcp -m tcp --dport 80 -m mark ! --mark 0x4000/0x4000 \
             -m set ! --match-set pods src,dst -j SNAT --to-source 192.0.2.1 --random-fully",
        );
        assert_eq!(
            rule.matches,
            [
                condition("", false, "-s", &["10.0.0.0/8"]),
                condition("", true, "-o", &["br0"]),
                condition("", false, "-p", &["tcp"]),
                condition("tcp", false, "--dport", &["80"]),
                condition("mark", true, "--mark", &["0x4000/0x4000"]),
                condition("set", true, "--match-set", &["pods", "src,dst"]),
            ]
        );
        let options = ["--to-source", "192.0.2.1", "--random-fully"].map(str::to_owned).to_vec();
        assert_eq!(rule.target, Target::Jump("SNAT".to_owned(), options));
    }

    #[test]
    fn a_comment_is_no_condition_whatever_it_says() {
        let rule = only(r#"-A C -m comment --comment "name: \"a b\" ! -d 10.0.0.0/8 -j ACCEPT \\" -j MASQUERADE"#);
        assert_eq!(rule.comment, r#"name: "a b" ! -d 10.0.0.0/8 -j ACCEPT \"#);
        assert_eq!(rule.matches, []);
        assert_eq!(rule.target_name(), "MASQUERADE");
        assert_eq!(
            only("-A C -m comment --comment -j -j MASQUERADE"),
            Rule {
                matches: Vec::new(),
                target: Target::Jump("MASQUERADE".to_owned(), Vec::new()),
                comment: "-j".to_owned(),
                text: "-A C -m comment --comment -j -j MASQUERADE".to_owned(),
            }
        );
    }

    #[test]
    fn a_module_without_options_is_a_condition() {
        let bare = condition("socket", false, "", &[]);
        assert_eq!(only("-A C -m socket -j ACCEPT").matches, std::slice::from_ref(&bare));
        assert_eq!(only("-A C -m socket -m comment --comment x -j ACCEPT").matches, std::slice::from_ref(&bare));
        assert_eq!(only("-A C -p tcp -m tcp -j ACCEPT").matches, [condition("", false, "-p", &["tcp"])]);
    }

    #[test]
    fn what_is_not_understood_stays_a_condition() {
        assert_eq!(only("-A C nonsense -j ACCEPT").matches, [condition("", false, "nonsense", &[])]);
        assert_eq!(only(r#"-A C --x "open"#).matches, [condition("", false, "--x", &["open"])]);
    }

    #[test]
    fn tables_and_chains() {
        let tables = parse("# x\n*nat\n:A - [0:0]\n-A B -j A\nCOMMIT\n*filter\n:C ACCEPT [1:2]\nCOMMIT\n");
        assert_eq!(tables.keys().collect::<Vec<_>>(), ["filter", "nat"]);
        assert_eq!(tables["nat"].keys().collect::<Vec<_>>(), ["A", "B"]);
        assert_eq!(tables["nat"]["B"].len(), 1);
    }

    proptest! {
        #[test]
        fn no_input_is_too_bad(text in r#"([*:#]|-A |-[a-z]|--[a-z]{1,9}|[a-z "\\!\n\t\x00é]){0,60}"#) {
            parse(&text);
            parse(&format!("*nat\n-A C {text}"));
        }
    }
}
