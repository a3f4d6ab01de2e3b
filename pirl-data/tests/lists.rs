//! List files as people's programs write them.

mod common;

use std::fs;

use common::{picture, png};
use pirl_data::{Columns, DataError, List, Source};
use tempfile::TempDir;

/// A folder with `a.png`, `b c.png`, `#d.png` and `sub/e, f.png`.
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    for name in ["a.png", "b c.png", "#d.png", "sub/e, f.png", "0017"] {
        fs::write(dir.path().join(name), png(&picture(4, 4))).unwrap();
    }
    dir
}

fn read_bytes(bytes: &[u8], columns: &str) -> Result<List, DataError> {
    let dir = folder();
    let path = dir.path().join("list.txt");
    fs::write(&path, bytes).unwrap();
    let columns: Columns = match columns {
        "" => Columns::default(),
        columns => columns.parse().unwrap(),
    };
    List::with_columns(&path, &columns)
}

/// Names and labels of the list, in words.
fn lines(list: &List) -> Vec<(String, String)> {
    let label = |label: Option<u32>| {
        label.map_or("-".to_owned(), |l| list.class_names()[l as usize].clone())
    };
    let line = |index| {
        let sample = list.read(index).unwrap();
        (sample.name, label(sample.label))
    };
    (0..list.len()).map(line).collect()
}

#[test]
fn every_form_that_is_met_with() {
    let utf16 = |text: &str, big: bool| -> Vec<u8> {
        let units = format!("\u{feff}{text}").encode_utf16().collect::<Vec<_>>();
        units
            .iter()
            .flat_map(|unit| {
                if big {
                    unit.to_be_bytes()
                } else {
                    unit.to_le_bytes()
                }
            })
            .collect()
    };
    let two = &[("a.png", "cat"), ("b c.png", "dog")][..];
    let alone = &[("a.png", "-"), ("b c.png", "-")][..];
    /// What it is, the file, the columns asked for, and the paths and labels found.
    type Case<'a> = (&'a str, Vec<u8>, &'a str, &'a [(&'a str, &'a str)]);
    let cases: Vec<Case<'_>> = vec![
        ("tab", b"a.png\tcat\nb c.png\tdog\n".to_vec(), "", two),
        ("comma", b"a.png,cat\nb c.png,dog".to_vec(), "", two),
        ("semicolon", b"a.png;cat\nb c.png;dog".to_vec(), "", two),
        ("space", b"a.png cat\nb c.png dog\n".to_vec(), "", two),
        (
            "several spaces",
            b"a.png    cat\nb c.png  dog\n".to_vec(),
            "",
            two,
        ),
        (
            "header",
            b"path,label\na.png,cat\nb c.png,dog\n".to_vec(),
            "",
            two,
        ),
        (
            "header of tabs",
            b"file\tclass\na.png\tcat\nb c.png\tdog\n".to_vec(),
            "",
            two,
        ),
        (
            "columns swapped",
            b"label,path\ncat,a.png\ndog,b c.png\n".to_vec(),
            "",
            two,
        ),
        (
            "more columns",
            b"id,filename,width,label\n7,a.png,4,cat\n8,b c.png,4,dog\n".to_vec(),
            "",
            two,
        ),
        (
            "named columns",
            b"img,kind,n\na.png,cat,1\nb c.png,dog,2\n".to_vec(),
            "path=img,label=kind",
            two,
        ),
        (
            "numbered columns",
            b"1,cat,a.png\n2,dog,b c.png\n".to_vec(),
            "path=3,label=2",
            two,
        ),
        (
            "quotes",
            b"\"a.png\",\"cat\"\r\n\"b c.png\",\"dog\"\r\n".to_vec(),
            "",
            two,
        ),
        (
            "byte-order mark",
            b"\xEF\xBB\xBFa.png\tcat\nb c.png\tdog\n".to_vec(),
            "",
            two,
        ),
        (
            "mark and header",
            b"\xEF\xBB\xBFpath,label\na.png,cat\nb c.png,dog\n".to_vec(),
            "",
            two,
        ),
        (
            "PowerShell",
            utf16("a.png,cat\r\nb c.png,dog\r\n", false),
            "",
            two,
        ),
        (
            "big-endian",
            utf16("a.png,cat\r\nb c.png,dog\r\n", true),
            "",
            two,
        ),
        (
            "Windows paths",
            b".\\a.png,cat\nb c.png,dog\n".to_vec(),
            "",
            &[("./a.png", "cat"), ("b c.png", "dog")],
        ),
        (
            "comments and empty lines",
            b"# made up\n\na.png\tcat\n   \n#\nb c.png\tdog\n\n".to_vec(),
            "",
            two,
        ),
        ("paths alone", b"a.png\nb c.png\n".to_vec(), "", alone),
        (
            "paths in quotes",
            b"\"a.png\"\n\"b c.png\"\n".to_vec(),
            "",
            alone,
        ),
        (
            "paths with a header",
            b"path\na.png\nb c.png\n".to_vec(),
            "",
            alone,
        ),
        (
            "one column of two",
            b"path,label\na.png,cat\nb c.png,dog\n".to_vec(),
            "path=path",
            alone,
        ),
        (
            "a comma in a quoted path",
            b"\"sub/e, f.png\",cat\n".to_vec(),
            "",
            &[("sub/e, f.png", "cat")],
        ),
        (
            "a comma in a path alone",
            b"sub/e, f.png\n".to_vec(),
            "",
            &[("sub/e, f.png", "-")],
        ),
        (
            "a name that begins with #",
            b"#d.png\tcat\n".to_vec(),
            "",
            &[("#d.png", "cat")],
        ),
        (
            "a name without ending",
            b"0017 cat\n".to_vec(),
            "",
            &[("0017", "cat")],
        ),
        (
            "integers",
            b"a.png 1\nb c.png 0\n".to_vec(),
            "",
            &[("a.png", "1"), ("b c.png", "0")],
        ),
        (
            "no line end",
            b"a.png\tcat".to_vec(),
            "",
            &[("a.png", "cat")],
        ),
        (
            "old Mac line ends",
            b"a.png,cat\rb c.png,dog\r".to_vec(),
            "",
            two,
        ),
    ];
    for (what, bytes, columns, expected) in cases {
        let dir = folder();
        let path = dir.path().join("list.txt");
        fs::write(&path, &bytes).unwrap();
        let columns: Columns = if columns.is_empty() {
            Columns::default()
        } else {
            columns.parse().unwrap()
        };
        let list =
            List::with_columns(&path, &columns).unwrap_or_else(|error| panic!("{what}: {error}"));
        let expected: Vec<(String, String)> = expected
            .iter()
            .map(|(name, label)| ((*name).to_owned(), (*label).to_owned()))
            .collect();
        assert_eq!(lines(&list), expected, "{what}");
        assert!(list.skipped().is_empty(), "{what}: {:?}", list.skipped());
    }
}

#[test]
fn wrong_lines_are_shown_with_the_form_expected() {
    for (text, columns, line, expected) in [
        ("a.png\t1\n\nb c.png\n", "", 3, "no label in \"b c.png\""),
        (
            "a.png\nb c.png\t1\n",
            "",
            2,
            "a label, which the lines before",
        ),
        ("a.png\t\n", "", 1, "no label"),
        ("a.png\t1\t2\n", "", 1, "--columns"),
        ("\t1\n", "", 1, "no path"),
        ("a.png\t1\nb c.png\t-1\n", "", 2, "outside 0"),
        ("a.png\t99999999999\n", "", 1, "outside 0"),
        (
            "path,label\na.png,1\n",
            "path=img",
            1,
            "no column \"img\"; the header has path, label",
        ),
        ("a.png,1\n", "path=0", 1, "counted from 1"),
    ] {
        let error = read_bytes(text.as_bytes(), columns)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("line {line}:")) && error.contains(expected),
            "{error}"
        );
    }
    let said = read_bytes(b"a.png\n\xFF\xFEb\n", "")
        .unwrap_err()
        .to_string();
    assert!(said.contains("line 2: not UTF-8"), "{said}");
    assert!(matches!(
        read_bytes(b"# only this\n", ""),
        Err(DataError::Empty { .. })
    ));
    assert!("path".parse::<Columns>().is_err());
}

#[test]
fn files_that_are_not_there_are_named_and_the_rest_is_read() {
    let dir = folder();
    let path = dir.path().join("list.txt");
    fs::write(&path, "a.png\tcat\nnowhere.png\tdog\n").unwrap();
    let list = List::open(&path).unwrap();
    assert_eq!((list.len(), list.class_names().len()), (1, 2));
    let skipped = &list.skipped()[0];
    assert!(
        skipped.name.ends_with("list.txt, line 2: nowhere.png"),
        "{skipped:?}"
    );
    fs::write(&path, "nowhere.png\n").unwrap();
    let error = List::open(&path).unwrap_err().to_string();
    assert!(error.contains("nowhere.png"), "{error}");
    fs::write(&path, "# one\n# two\na.png\n").unwrap();
    assert!(
        List::open(&path).unwrap().notes()[0]
            .reason
            .starts_with("2 lines")
    );
}
