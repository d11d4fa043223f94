//! JSON, as far as a report needs it: built as values, printed on one line.

use std::fmt::{self, Display, Formatter};

#[derive(Debug)]
pub enum Json {
    Bool(bool),
    Integer(u64),
    /// Printed with at most four decimals; never NaN or infinite.
    Decimal(f64),
    String(String),
    Array(Vec<Json>),
    /// Printed in this order.
    Object(Vec<(&'static str, Json)>),
}

impl Json {
    pub fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }
}

impl Display for Json {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(out, "{value}"),
            Self::Integer(value) => write!(out, "{value}"),
            Self::Decimal(value) => write!(out, "{}", (value * 1e4).round() / 1e4),
            Self::String(text) => write_string(out, text),
            Self::Array(items) => {
                out.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    write!(out, "{}{item}", if index == 0 { "" } else { "," })?;
                }
                out.write_str("]")
            }
            Self::Object(members) => {
                out.write_str("{")?;
                for (index, (name, value)) in members.iter().enumerate() {
                    out.write_str(if index == 0 { "" } else { "," })?;
                    write_string(out, name)?;
                    write!(out, ":{value}")?;
                }
                out.write_str("}")
            }
        }
    }
}

fn write_string(out: &mut Formatter<'_>, text: &str) -> fmt::Result {
    out.write_str("\"")?;
    for character in text.chars() {
        match character {
            '"' | '\\' => write!(out, "\\{character}")?,
            '\0'..='\x1f' => write!(out, "\\u{:04x}", character as u32)?,
            _ => write!(out, "{character}")?,
        }
    }
    out.write_str("\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_value_prints_as_json_on_one_line() {
        let value = Json::Object(vec![
            ("none", Json::Object(vec![])),
            ("flags", Json::Array(vec![Json::string("A"), Json::string("B")])),
            ("yes", Json::Bool(true)),
            ("seed", Json::Integer(u64::MAX)),
            ("ns", Json::Array(vec![Json::Decimal(62.0), Json::Decimal(0.007_812_5)])),
        ]);
        let expected = r#"{"none":{},"flags":["A","B"],"yes":true,"seed":18446744073709551615,"ns":[62,0.0078]}"#;
        assert_eq!(value.to_string(), expected);
    }

    #[test]
    fn a_path_with_quotes_backslashes_and_newlines_stays_one_string() {
        assert_eq!(Json::string("a\"b\\c\nd é").to_string(), r#""a\"b\\c\u000ad é""#);
    }
}
