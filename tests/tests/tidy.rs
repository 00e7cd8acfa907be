//! Style as a test: small checks over the tree, each with a test that it can fail.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use onlyonce_tests::binaries::workspace;

/// The longest source file, in lines.
const FILE_LINES_MAX: usize = 600;
/// The longest function, in lines. Lower it when the longest one shrinks; never raise it.
const FUNCTION_LINES_MAX: usize = 90;

/// Each crate, and the crates of the workspace that it may use.
const ARROWS: [(&str, &[&str]); 9] = [
    ("wire", &[]),
    ("storage", &[]),
    ("replica", &["wire", "storage"]),
    ("node", &["replica", "storage", "wire"]),
    ("client", &["wire"]),
    ("cli", &["client"]),
    ("history", &[]),
    ("sim", &["history", "replica", "storage", "wire"]),
    ("tests", &["client", "history", "wire"]),
];
/// What a crate must not use, to stay what it is.
const FORBIDDEN: [(&str, &[&str]); 3] = [
    ("replica", &["tokio", "sled", "rustix"]),
    ("storage", &["tokio", "rand"]),
    ("client", &["sled"]),
];
/// The one file that knows the database, and holds the one unsafe definition that it needs.
const ENGINE: &str = "storage/src/engine/sled.rs";
/// The one file that sleeps in tests: it is where conditions are polled.
const SLEEPER: &str = "tests/src/wait.rs";

/// A source file: where it is, from the workspace's folder, and what it says.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    /// Lines of code, numbered from 1: without comments, and with the inside of texts blanked.
    fn code(&self) -> Vec<(usize, String)> {
        let mut code = blank(&self.text);
        code.push('\n');
        code.lines().map(str::to_owned).enumerate().map(|(at, line)| (at + 1, line)).collect()
    }
}

/// Rust source with its comments, texts and characters blanked out, line by line.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let end = if rest.starts_with(b"//") {
            at + rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            at + 2 + find(&rest[2..], b"*/").map_or(rest.len() - 2, |end| end + 2)
        } else if let Some(length) = raw_text(rest, at.checked_sub(1).map(|at| bytes[at])) {
            at + length
        } else if rest[0] == b'"' {
            at + quoted(rest)
        } else if let Some(length) = character(rest) {
            at + length
        } else {
            out.push(if rest[0].is_ascii() { char::from(rest[0]) } else { '?' });
            at += 1;
            continue;
        };
        out.extend(bytes[at..end].iter().filter(|&&byte| byte == b'\n').map(|_| '\n'));
        out.push(' ');
        at = end;
    }
    out
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The length of a raw text such as `r#"..."#` at the beginning of `rest`.
fn raw_text(rest: &[u8], before: Option<u8>) -> Option<usize> {
    let in_word = before.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if rest[0] != b'r' || (in_word && before != Some(b'b')) {
        return None;
    }
    let hashes = rest[1..].iter().take_while(|&&byte| byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let end = [&b"\""[..], &b"#".repeat(hashes)].concat();
    let start = 2 + hashes;
    Some(start + find(&rest[start..], &end).map_or(rest.len() - start, |place| place + end.len()))
}

/// The length of a text in quotes at the beginning of `rest`.
fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// The length of a character such as 'x' or '\n' at the beginning of `rest`; none for a lifetime.
fn character(rest: &[u8]) -> Option<usize> {
    if rest[0] != b'\'' || rest.len() < 3 {
        return None;
    }
    if rest[1] == b'\\' {
        return rest.iter().skip(3).position(|&byte| byte == b'\'').map(|place| place + 4);
    }
    let length = std::str::from_utf8(&rest[1..rest.len().min(5)])
        .or_else(|error| std::str::from_utf8(&rest[1..=error.valid_up_to()]))
        .ok()
        .and_then(|text| text.chars().next())
        .map_or(1, char::len_utf8);
    (rest.get(1 + length) == Some(&b'\'')).then_some(length + 2)
}

/// The crates of the workspace.
fn crates() -> Vec<String> {
    let manifest = fs::read_to_string(workspace().join("Cargo.toml")).expect("a manifest");
    let manifest: toml::Table = manifest.parse().expect("a manifest");
    let members = manifest["workspace"]["members"].as_array().expect("members");
    members.iter().map(|member| member.as_str().expect("a name").to_owned()).collect()
}

/// The Rust sources of every crate.
fn sources() -> Vec<Source> {
    let mut paths = Vec::new();
    for name in crates() {
        rust_files(&workspace().join(name), &mut paths);
    }
    paths.sort();
    assert!(paths.len() > 40, "only {} files were found", paths.len());
    let read = |path: PathBuf| Source {
        text: fs::read_to_string(&path).expect("a source"),
        path: path.strip_prefix(workspace()).expect("inside").display().to_string(),
    };
    paths.into_iter().map(read).collect()
}

/// The sources, and the scripts and pages beside them.
fn texts() -> Vec<Source> {
    let mut paths = vec![workspace().join("README.md")];
    for folder in ["scripts", "docs", ".ci"] {
        let files = fs::read_dir(workspace().join(folder)).expect("a folder").flatten();
        paths.extend(files.map(|file| file.path()));
    }
    let read = |path: PathBuf| Source {
        text: fs::read_to_string(&path).expect("a text"),
        path: path.strip_prefix(workspace()).expect("inside").display().to_string(),
    };
    paths.into_iter().map(read).chain(sources()).collect()
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// Fails with all findings of a check.
#[track_caller]
fn assert_none(findings: &[String]) {
    let text = findings.iter().fold(String::new(), |mut text, finding| {
        let _ = writeln!(text, "  {finding}");
        text
    });
    assert!(findings.is_empty(), "{} findings:\n{text}", findings.len());
}

/// What a manifest depends on that it should not.
fn wrong_arrows(name: &str, manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("a manifest");
    let allowed = ARROWS.iter().find(|(one, _)| *one == name).map_or(&[][..], |(_, uses)| uses);
    let forbidden = FORBIDDEN.iter().find(|(one, _)| *one == name).map_or(&[][..], |(_, not)| not);
    let dependencies: BTreeSet<&String> = manifest
        .get("dependencies")
        .and_then(toml::Value::as_table)
        .map(|table| table.keys().collect())
        .unwrap_or_default();
    dependencies
        .into_iter()
        .filter(|dependency| match dependency.strip_prefix("onlyonce-") {
            Some(other) => !allowed.contains(&other),
            None => forbidden.contains(&dependency.as_str()),
        })
        .map(|dependency| format!("{name} must not use {dependency}"))
        .collect()
}

/// Crates use each other only along the arrows of the architecture.
#[test]
fn crates_keep_to_their_arrows() {
    let mut findings = Vec::new();
    for name in crates() {
        let known = ARROWS.iter().any(|(one, _)| *one == name);
        assert!(known, "the crate {name} has no line in ARROWS");
        let manifest = fs::read_to_string(workspace().join(&name).join("Cargo.toml"));
        findings.extend(wrong_arrows(&name, &manifest.expect("a manifest")));
    }
    assert_none(&findings);
}

#[test]
fn a_wrong_arrow_is_found() {
    let bad = "[dependencies]\nonlyonce-node.workspace = true\nsled = '1'\n";
    assert_eq!(wrong_arrows("client", bad).len(), 2);
    assert_eq!(wrong_arrows("replica", "[dependencies]\ntokio.workspace = true\n").len(), 1);
    assert!(wrong_arrows("client", "[dependencies]\nonlyonce-wire.workspace = true\n").is_empty());
}

/// Lines that name sled's code, or are unsafe. The engine's module has the same name: a file that
/// uses that module means it.
fn engine_leaks(source: &Source) -> Vec<String> {
    let code = source.code();
    let means_module = code.iter().any(|(_, line)| {
        line.trim_start().starts_with("use crate::engine") && words(line).contains(&"sled")
    });
    let is_leak = |line: &str| {
        let names_sled = words(line).contains(&"sled")
            && (line.contains("sled::") || line.trim_start().starts_with("use sled"));
        (names_sled && !means_module) || words(line).contains(&"unsafe")
    };
    code.iter()
        .filter(|(_, line)| is_leak(line))
        .map(|(number, line)| format!("{}:{number}: {}", source.path, line.trim()))
        .collect()
}

/// The identifiers and keywords of a line of code.
fn words(line: &str) -> Vec<&str> {
    let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.filter(|word| !word.is_empty()).collect()
}

/// Only the engine knows sled, and only it is unsafe.
#[test]
fn only_the_engine_knows_sled() {
    let sources = sources();
    let engine = sources.iter().find(|source| source.path == ENGINE).expect("the engine");
    assert!(!engine_leaks(engine).is_empty(), "the check finds nothing where there is something");
    let others = sources.iter().filter(|source| source.path != ENGINE);
    assert_none(&others.flat_map(engine_leaks).collect::<Vec<_>>());
}

#[test]
fn a_leak_is_found() {
    for bad in
        ["use sled::Db;", "    let db = sled::open(x)?;", "unsafe { f() }", "unsafe fn f() {}"]
    {
        assert_eq!(engine_leaks(&Source::new("x.rs", bad)).len(), 1, "{bad}");
    }
    for good in
        ["mod sled;", "// sled::open", "#![deny(unsafe_code)]", "let s = \"unsafe sled::x\";"]
    {
        assert!(engine_leaks(&Source::new("x.rs", good)).is_empty(), "{good}");
    }
}

/// Things that were left behind: unfinished code, markers, tests that are switched off.
fn leftovers(source: &Source) -> Vec<String> {
    // Spelled apart, so that this file holds none of them.
    let in_code = [["todo", "!"], ["unimplemented", "!"], ["dbg", "!"], ["#[ign", "ore"]];
    let anywhere =
        [["FIX", "ME"], ["XX", "X"], ["TO", "DO"], ["HA", "CK"], ["<<<<", "<<<"], [">>>>", ">>>"]];
    let mut findings = Vec::new();
    let mut find = |number: usize, line: &str, markers: &[[&str; 2]]| {
        for marker in markers.iter().map(|parts| parts.concat()) {
            if line.contains(&marker) {
                findings.push(format!("{}:{number}: {marker}", source.path));
            }
        }
    };
    for (number, line) in source.code() {
        find(number, &line, &in_code);
    }
    for (at, line) in source.text.lines().enumerate() {
        find(at + 1, line, &anywhere);
    }
    findings
}

/// Nothing is left unfinished or switched off.
#[test]
fn nothing_is_left_behind() {
    assert_none(&texts().iter().flat_map(leftovers).collect::<Vec<_>>());
}

#[test]
fn a_leftover_is_found() {
    for bad in
        [["to", "do!()"], ["// FI", "XME later"], ["#[ig", "nore = \"slow\"]"], ["<<<<<", "<< one"]]
    {
        assert_eq!(leftovers(&Source::new("x.rs", &bad.concat())).len(), 1, "{bad:?}");
    }
}

/// Sleeps in tests: they wait for conditions. In this crate only the poll loop sleeps; the tests of
/// another crate may have a loop of their own.
fn sleeps(source: &Source) -> Vec<String> {
    let mut parts = source.path.split('/');
    let this_crate = parts.next() == Some("tests");
    if source.path == SLEEPER || !(this_crate || parts.next() == Some("tests")) {
        return Vec::new();
    }
    let code = source.code();
    let polls = |at: usize| {
        let above = &code[at.saturating_sub(8)..at];
        above
            .iter()
            .any(|(_, line)| ["while", "loop"].iter().any(|word| words(line).contains(word)))
    };
    code.iter()
        .enumerate()
        .filter(|(at, (_, line))| words(line).contains(&"sleep") && (this_crate || !polls(*at)))
        .map(|(_, (number, line))| format!("{}:{number}: {}", source.path, line.trim()))
        .collect()
}

/// Tests wait for conditions, never for a time.
#[test]
fn tests_do_not_sleep() {
    assert_none(&sources().iter().flat_map(sleeps).collect::<Vec<_>>());
}

#[test]
fn a_sleep_is_found() {
    let bad = "    std::thread::sleep(x);";
    assert_eq!(sleeps(&Source::new("tests/tests/x.rs", bad)).len(), 1);
    assert_eq!(sleeps(&Source::new("node/tests/x.rs", bad)).len(), 1);
    assert!(sleeps(&Source::new("node/src/x.rs", bad)).is_empty());
    let poll = format!("while !ready() {{\n{bad}\n}}");
    assert!(sleeps(&Source::new("node/tests/x.rs", &poll)).is_empty());
    assert_eq!(sleeps(&Source::new("tests/tests/x.rs", &poll)).len(), 1);
}

/// Paths of the machine that somebody worked on.
fn machine_paths(path: &str, text: &str) -> Vec<String> {
    let places = [["/ho", "me/"], ["/ro", "ot/"], ["/wo", "rk/"], ["/Us", "ers/"]];
    let mut findings = Vec::new();
    for (at, line) in text.lines().enumerate() {
        for place in places.iter().map(|parts| parts.concat()) {
            if line.contains(&place) {
                findings.push(format!("{path}:{}: {place}", at + 1));
            }
        }
    }
    findings
}

/// No file names a place of somebody's machine.
#[test]
fn no_machine_paths() {
    let findings: Vec<_> =
        texts().iter().flat_map(|text| machine_paths(&text.path, &text.text)).collect();
    assert_none(&findings);
}

#[test]
fn a_machine_path_is_found() {
    let bad = ["see /ho", "me/me/notes"].concat();
    assert_eq!(machine_paths("x", &bad).len(), 1);
    assert!(machine_paths("x", "cd target/debug").is_empty());
}

/// Functions longer than the limit, and files longer than theirs.
fn too_long(source: &Source) -> Vec<String> {
    let mut findings = Vec::new();
    let lines = source.text.lines().count();
    if lines > FILE_LINES_MAX {
        findings.push(format!("{}: {lines} lines, over {FILE_LINES_MAX}", source.path));
    }
    for (name, first, length) in functions(source) {
        if length > FUNCTION_LINES_MAX {
            let path = &source.path;
            findings.push(format!(
                "{path}:{first}: fn {name}: {length} lines, over {FUNCTION_LINES_MAX}"
            ));
        }
    }
    findings
}

/// Name, first line and length of each function with a body.
fn functions(source: &Source) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    // Functions whose end is not seen yet, and how deep their bodies are.
    let mut open: Vec<(String, usize, Option<usize>)> = Vec::new();
    let mut depth = 0_usize;
    for (number, line) in source.code() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let Some(place) = words.iter().position(|word| *word == "fn") {
            let name = words.get(place + 1).copied().unwrap_or_default();
            let name = name.split(['(', '<']).next().unwrap_or_default().to_owned();
            open.push((name, number, None));
        }
        for character in line.chars() {
            match character {
                '{' => {
                    depth += 1;
                    if let Some((_, _, body @ None)) = open.last_mut() {
                        *body = Some(depth);
                    }
                }
                '}' => {
                    if open.last().is_some_and(|(_, _, body)| *body == Some(depth)) {
                        let (name, first, _) = open.pop().expect("it is the last");
                        found.push((name, first, number + 1 - first));
                    }
                    depth = depth.saturating_sub(1);
                }
                // A declaration without a body.
                ';' if open.last().is_some_and(|(_, _, body)| body.is_none()) => {
                    open.pop();
                }
                _ => {}
            }
        }
    }
    found
}

/// Files and functions stay short enough to be read.
#[test]
fn files_and_functions_stay_short() {
    let sources = sources();
    assert_none(&sources.iter().flat_map(too_long).collect::<Vec<_>>());
    let longest = sources.iter().flat_map(functions).map(|(name, _, length)| (length, name)).max();
    println!("the longest function: {longest:?}");
}

#[test]
fn a_long_file_and_a_long_function_are_found() {
    let body = "    call();\n".repeat(FUNCTION_LINES_MAX);
    let long = format!("trait T {{ fn g(); }}\nfn f() {{\n{body}}}\nfn h() {{}}\n");
    assert_eq!(too_long(&Source::new("x.rs", &long)).len(), 1);
    assert_eq!(too_long(&Source::new("x.rs", &"\n".repeat(FILE_LINES_MAX + 1))).len(), 1);
    let braces = "fn f() {\n    let (a, b, c) = ('{', \"}{{\", r#\"{\"#); // {\n}\nfn g() {}\n";
    let found = functions(&Source::new("x.rs", braces));
    assert_eq!(found, [("f".to_owned(), 1, 3), ("g".to_owned(), 4, 1)]);
}

/// The words that begin a public item with docs of its own; fields and variants go with their type.
const ITEMS: [&str; 7] = ["fn", "struct", "enum", "trait", "type", "const", "static"];

/// A public item: its name, the type whose `impl` it stands in, and its line, counted from 0.
struct Item {
    name: String,
    owner: String,
    at: usize,
}

/// The public items of a source, and those that a macro makes of one of `names` on a line of its own.
fn public_items(source: &Source, names: &BTreeSet<String>) -> Vec<Item> {
    let mut items = Vec::new();
    let mut owner = String::new();
    for (number, line) in source.code() {
        let words = words(&line);
        if line.starts_with("impl") {
            let of = words.iter().position(|word| *word == "for").map_or(1, |place| place + 1);
            words.get(of).copied().unwrap_or_default().clone_into(&mut owner);
        } else if line.starts_with('}') {
            owner.clear();
        }
        let item = if line.trim_start().starts_with("pub ") {
            let kind = words.iter().take(4).position(|word| *word == "fn").unwrap_or(1);
            words.get(kind).filter(|kind| ITEMS.contains(kind)).and(words.get(kind + 1)).copied()
        } else {
            Some(line.trim()).filter(|name| names.contains(*name))
        };
        items.extend(item.map(|name| Item {
            name: name.to_owned(),
            owner: owner.clone(),
            at: number - 1,
        }));
    }
    items
}

/// Whether the docs of the item at line `at` (from 0) have a block of code that is compiled.
fn has_example(source: &Source, at: usize) -> bool {
    let lines: Vec<_> = source.text.lines().take(at).map(str::trim).collect();
    let is_attribute = |line: &&&str| {
        !line.starts_with("///") && !line.is_empty() && !line.ends_with(['{', '}', ';'])
    };
    let attributes = lines.iter().rev().take_while(is_attribute).count();
    let docs = lines.iter().rev().skip(attributes).map_while(|line| line.strip_prefix("///"));
    let fences: Vec<_> = docs.filter_map(|line| line.trim().strip_prefix("```")).collect();
    // From the last one up: each block's end, then its beginning, which says what it is.
    fences.chunks(2).any(|block| ["", "no_run"].contains(block.last().unwrap_or(&"text")))
}

/// The types of the wire crate that the client hands on, by what its `lib.rs` says.
fn handed_on(library: &Source) -> BTreeSet<String> {
    let code: String = library.code().into_iter().map(|(_, line)| line + "\n").collect();
    let uses = code.split(';').filter_map(|part| part.split_once("pub use onlyonce_wire"));
    let names = uses.flat_map(|(_, names)| words(names)).filter(|name| {
        name.starts_with(char::is_uppercase) // not a module
    });
    names.map(str::to_owned).collect()
}

/// Every public item of the client has an example that is compiled; so has every type of the wire
/// crate that it hands on, and its functions.
#[test]
fn public_items_have_examples() {
    let sources = sources();
    let library = sources.iter().find(|source| source.path == "client/src/lib.rs");
    let handed_on = handed_on(library.expect("the client's library"));
    assert!(handed_on.len() > 20, "only {handed_on:?} are handed on");
    let (mut defined, mut findings) = (BTreeSet::new(), Vec::new());
    for source in &sources {
        let is_client = source.path.starts_with("client/src/");
        if !is_client && !source.path.starts_with("wire/src/") {
            continue;
        }
        for Item { name, owner, at } in public_items(source, &handed_on) {
            let is_handed_on = handed_on.contains(&name) || handed_on.contains(&owner);
            if (is_client || is_handed_on) && !has_example(source, at) {
                findings.push(format!("{}:{}: {name} has no example", source.path, at + 1));
            }
            defined.insert(name);
        }
    }
    findings.extend(handed_on.difference(&defined).map(|name| format!("{name} was not found")));
    assert_none(&findings);
}

#[test]
fn a_missing_example_is_found() {
    let names = BTreeSet::from(["Id".to_owned()]);
    let check = |text: &str| {
        let source = Source::new("x.rs", text);
        let items = public_items(&source, &names);
        assert_eq!(items.len(), 1, "{text}");
        has_example(&source, items[0].at)
    };
    for bad in [
        "pub fn f() {}",
        "/// ```\n/// f();\n/// ```\nfn g() {}\n/// Docs.\npub async fn f() {}",
        "/// ```text\n/// a picture\n/// ```\n#[must_use]\npub const fn f() {}",
        "make! {\n    /// Docs.\n    Id\n}",
        "// pub fn g() {}\nlet s = \"\npub fn h()\";\npub(crate) fn i() {}\npub enum E {}",
    ] {
        assert!(!check(bad), "{bad}");
    }
    for good in [
        "/// ```\n/// f();\n/// ```\n///\n/// # Errors\n/// Never.\npub fn f() {}",
        "/// ```no_run\n/// f();\n/// ```\n#[derive(\n    Clone,\n)]\npub struct S {\n    pub field: u8,\n}",
        "make! {\n    /// ```\n    /// f();\n    /// ```\n    Id\n}",
    ] {
        assert!(check(good), "{good}");
    }
    let library = "pub use onlyonce_wire::{\n    A, client::B,\n};\nuse onlyonce_wire::C;";
    let found = handed_on(&Source::new("client/src/lib.rs", library));
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["A", "B"]);
}
