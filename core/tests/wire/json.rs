//! The JSON scanner and writer.

use nanonsq_core::wire::json::{
    DEPTH_MAX, Fields, JsonError, Object, Problem, Scanner, Token, emit_str,
};

use crate::support::tokens;

#[track_caller]
fn scans(json: &str, expected: &[&str]) {
    assert_eq!(tokens(&[json.as_bytes()]), expected, "{json}");
}

#[test]
fn tokens_of_valid_documents() {
    scans("null", &["Null"]);
    scans(" true ", &["Bool(true)"]);
    scans("\r\n\tfalse", &["Bool(false)"]);
    scans("[]", &["ArrayStart", "ArrayEnd"]);
    scans("{ }", &["ObjectStart", "ObjectEnd"]);
    scans(
        r#"{"a":[1,{"b":null} , "c"],"":-5}"#,
        &[
            "ObjectStart",
            "a:",
            "ArrayStart",
            "1",
            "ObjectStart",
            "b:",
            "Null",
            "ObjectEnd",
            "\"c\"",
            "ArrayEnd",
            ":",
            "-5",
            "ObjectEnd",
        ],
    );
}

#[test]
fn numbers_are_integers_or_flagged() {
    for (json, expected) in [
        ("0", "0"),
        ("-0", "0"),
        ("12 ", "12"),
        ("2147483647", "2147483647"),
        ("2147483648", "~2147483647"),
        ("-2147483648", "-2147483648"),
        ("-2147483649", "~-2147483648"),
        ("21474836470", "~2147483647"),
        ("99999999999999999999999999", "~2147483647"),
        ("1.5", "~1"),
        ("-1.999", "~-1"),
        ("1.0", "~1"),
        ("1e3", "~1"),
        ("0E-7", "~0"),
        ("12.5e+10", "~12"),
    ] {
        scans(json, &[expected]);
    }
    for bad in ["-", "01", "1.", "+1", ".5", "1e", "1e+", "--1", "1.e1", "00", "0x1", "1_0"] {
        let last = tokens(&[bad.as_bytes()]).pop().unwrap();
        assert!(last.contains(" at byte "), "{bad}: {last}");
    }
}

#[test]
fn strings_are_unescaped_and_cut() {
    for (json, expected) in [
        (r#""a\"\\\/\b\f\n\r\tb""#, r#""a\"\\/\x08\x0c\n\r\tb""#),
        (r#""\u0041\u00e9\u20AC""#, r#""A\xc3\xa9\xe2\x82\xac""#),
        (r#""\ud83d\ude00""#, r#""\xf0\x9f\x98\x80""#),
        // Lone surrogates.
        (r#""\ud83d""#, r#""\xef\xbf\xbd""#),
        (r#""\ude00""#, r#""\xef\xbf\xbd""#),
        (r#""\ud83dx""#, r#""\xef\xbf\xbdx""#),
        (r#""\ud83d\n""#, r#""\xef\xbf\xbd\n""#),
        (r#""\ud83d\u0041""#, r#""\xef\xbf\xbdA""#),
        (r#""\ud83d\ud83d\ude00""#, r#""\xef\xbf\xbd\xf0\x9f\x98\x80""#),
        (r#""\u0000""#, r#""\x00""#),
        (r#""exactly12byt""#, r#""exactly12byt""#),
        (r#""exactly12bytX""#, r#""exactly12byt...""#),
    ] {
        scans(json, &[expected]);
    }
    for bad in [r#""\x""#, r#""\u12g4""#, "\"a\nb\"", "\"a\u{1}\"", r#""\u12"#, r#""a"#, r#""\"#] {
        let last = tokens(&[bad.as_bytes()]).pop().unwrap();
        assert!(last.contains(" at byte "), "{bad}: {last}");
    }
}

#[test]
fn a_cut_text_ends_between_characters() {
    let mut scanner = Scanner::<4>::new();
    let mut input = "\"ab\u{20ac}\"".as_bytes();
    let Ok(Some(Token::String(text))) = scanner.next(&mut input) else { panic!() };
    assert!(text.truncated());
    assert_eq!(text.as_str(), Some("ab"));
    let mut scanner = Scanner::<4>::new();
    let mut input = &b"\"ab\xff\""[..];
    let Ok(Some(Token::String(text))) = scanner.next(&mut input) else { panic!() };
    assert_eq!((text.as_str(), text.as_bytes()), (None, &b"ab\xff"[..]));
}

#[test]
fn errors_of_invalid_documents_have_a_position_and_a_problem() {
    for (json, at, problem) in [
        ("", 0, Problem::Incomplete),
        ("  ", 2, Problem::Incomplete),
        ("x", 0, Problem::Value),
        ("[1,]", 3, Problem::Value),
        ("[,", 1, Problem::Value),
        ("[1 2]", 3, Problem::CommaOrEnd),
        ("[1}", 2, Problem::CommaOrEnd),
        ("{]", 1, Problem::Key),
        ("{\"a\":1,}", 7, Problem::Key),
        ("{1:2}", 1, Problem::Key),
        ("{\"a\" 1}", 5, Problem::Colon),
        ("{\"a\":}", 5, Problem::Value),
        ("{\"a\":1]", 6, Problem::CommaOrEnd),
        ("{\"a\"", 4, Problem::Incomplete),
        ("[1", 2, Problem::Incomplete),
        ("tru", 3, Problem::Incomplete),
        ("trux", 3, Problem::Literal),
        ("nullnull", 4, Problem::Trailing),
        ("{} {", 3, Problem::Trailing),
        ("1 1", 2, Problem::Trailing),
        ("]", 0, Problem::Value),
        ("[-]", 2, Problem::Number),
        ("\"\\q\"", 2, Problem::Escape),
        ("\"\u{7}\"", 1, Problem::Control),
    ] {
        let lines = tokens(&[json.as_bytes()]);
        assert_eq!(lines.last(), Some(&format!("{problem} at byte {at}")), "{json}");
    }
}

#[test]
fn an_error_is_final() {
    let mut scanner = Scanner::<4>::new();
    let mut input = &b"[x"[..];
    assert_eq!(scanner.next(&mut input), Ok(Some(Token::ArrayStart)));
    let error = scanner.next(&mut input).unwrap_err();
    let mut more = &b"1]"[..];
    assert_eq!(scanner.next(&mut more), Err(error));
    assert_eq!(scanner.end(), Err(error));
    assert!(!scanner.finished());
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| {
        let mut scanner = Scanner::<4>::new();
        let json = format!("{}1{}", "[{\"a\":".repeat(depth / 2), "}]".repeat(depth / 2));
        let mut input = json.as_bytes();
        while scanner.next(&mut input)?.is_some() {}
        assert!(scanner.finished());
        Ok::<(), JsonError>(())
    };
    assert_eq!(nested(DEPTH_MAX), Ok(()));
    assert_eq!(nested(DEPTH_MAX + 2).unwrap_err().problem(), Problem::TooDeep);
}

#[test]
fn fields_reads_only_the_top_level() {
    let keys = ["b", "c", "toolongf"];
    let all = |json: &str| {
        let mut fields = Fields::<8>::new();
        let mut seen = Vec::new();
        let mut input = json.as_bytes();
        while let Some((key, value)) = fields.next(&keys, &mut input)? {
            seen.push((key, value.as_i32()));
        }
        fields.finish().map(|()| seen)
    };
    let json = r#"{"a":{"b":1,"a":[{"b":2}]},"b":3,"b":4,"toolongforit":5,"toolongf":6,"c":null}"#;
    assert_eq!(all(json), Ok(vec![(0, Some(3)), (0, Some(4)), (2, Some(6))]));
    assert_eq!(all(r#"{"x":[{"b":1}],"b":[1,2],"c":{}}"#), Ok(vec![(0, None), (1, None)]));
    assert_eq!(all("").unwrap_err().problem(), Problem::Incomplete);
    let error = all("{\"b\":1").unwrap_err();
    assert_eq!((error.at(), error.problem()), (6, Problem::Incomplete));
    assert_eq!(all("[]").unwrap_err().problem(), Problem::NotAnObject);
    assert_eq!(all("\"{}\"").unwrap_err().problem(), Problem::NotAnObject);
    // As in Go, keys match in any case, and null is an empty object.
    let json = r#"{"B":1,"TooLongF":2,"TOOLONGFORIT":3,"\u0062":4,"\u0043":5}"#;
    let fields = vec![(0, Some(1)), (2, Some(2)), (0, Some(4)), (1, Some(5))];
    assert_eq!(all(json), Ok(fields));
    assert_eq!(all("null"), Ok(vec![]));
    assert_eq!(all("null{}").unwrap_err().problem(), Problem::Trailing);

    let mut fields = Fields::<8>::new();
    let mut input = &b"{\"b\":true,\"c\":1}"[..];
    assert!(matches!(fields.next(&keys, &mut input), Ok(Some((0, Token::Bool(true))))));
    let error = fields.refuse();
    assert_eq!(error.problem(), Problem::WrongType);
    assert_eq!(fields.next(&keys, &mut input), Err(error));
}

#[test]
fn written_json_is_read_back() {
    for text in
        ["", "plain", "q\"b\\s/", "\u{0}\u{1}\n\u{1f}\u{20}\u{7f}", "\u{e9}\u{20ac}\u{1f600}"]
    {
        let mut json = Vec::new();
        emit_str(&mut json, text).unwrap();
        let mut scanner = Scanner::<64>::new();
        let mut input = &json[..];
        let Ok(Some(Token::String(read))) = scanner.next(&mut input) else { panic!("{text:?}") };
        assert_eq!(read.as_str(), Some(text));
    }
    let mut json = Vec::new();
    let mut object = Object::new(&mut json);
    object.string("s", "\u{1}\"").unwrap();
    object.number("u", u32::MAX).unwrap();
    object.signed("i", i32::MIN).unwrap();
    object.bool("t", true).unwrap();
    object.key("a").unwrap().extend_from_slice(b"[]");
    object.end().unwrap();
    let expected = r#"{"s":"\u0001\"","u":4294967295,"i":-2147483648,"t":true,"a":[]}"#;
    assert_eq!(String::from_utf8(json).unwrap(), expected);
}

#[test]
fn ram() {
    assert_eq!(size_of::<Scanner<24>>(), 24 + 20);
    assert_eq!(size_of::<Fields<24>>(), 24 + 24);
}
