//! The user as a query's `$1`, and a subscription as its column: which types of PostgreSQL will do.

use bytes::{BufMut, BytesMut};
use tokio_postgres::Statement;
use tokio_postgres::types::{FromSql, IsNull, Kind, ToSql, Type, to_sql_checked};

type BoxError = Box<dyn std::error::Error + Sync + Send>;

/// What a prepared query takes and gives, as far as it will do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    parameter: ParameterKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum ParameterKind {
    Int2,
    Int4,
    Int8,
    Text,
    Uuid,
    /// The labels that there are: any other is an error of the server's.
    Enum(Vec<String>),
}

/// A user as the query takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Nobody.
    Null,
    /// A number of two, four or eight bytes, in the order of the network.
    Number(Box<[u8]>),
    /// Text, also of an enumeration.
    Text(Box<str>),
    /// An identifier of 128 bits.
    Uuid([u8; 16]),
}

impl Shape {
    /// Looks at a prepared query.
    ///
    /// # Errors
    /// What it takes or gives that will not do, and what would.
    pub fn of(statement: &Statement) -> Result<Self, String> {
        let columns: Vec<&Type> = statement.columns().iter().map(|it| it.type_()).collect();
        Self::of_types(statement.params(), &columns)
    }

    fn of_types(parameters: &[Type], columns: &[&Type]) -> Result<Self, String> {
        let [parameter] = parameters else {
            return Err(format!("it takes {} parameters, expected $1 alone", parameters.len()));
        };
        let kind = parameter_kind(parameter).ok_or_else(|| {
            let name = parameter.name();
            format!(
                "$1 is of type {name}, expected a text, an integer or a uuid: cast it, $1::text"
            )
        })?;
        let [column] = columns else {
            return Err(format!("it gives {} columns, expected one", columns.len()));
        };
        if !is_text(column) {
            let name = column.name();
            return Err(format!(
                "it gives a column of type {name}, expected text: cast it, ::text"
            ));
        }
        Ok(Shape { parameter: kind })
    }

    /// The user as the query takes it; `None` where it cannot be in the database: no number where
    /// numbers are, no uuid where uuids are.
    pub fn parameter(&self, user: &str) -> Option<Parameter> {
        Some(match &self.parameter {
            ParameterKind::Int2 => number(user.parse::<i16>().ok()?.to_be_bytes()),
            ParameterKind::Int4 => number(user.parse::<i32>().ok()?.to_be_bytes()),
            ParameterKind::Int8 => number(user.parse::<i64>().ok()?.to_be_bytes()),
            ParameterKind::Text => Parameter::Text(user.into()),
            ParameterKind::Uuid => Parameter::Uuid(uuid(user)?),
            ParameterKind::Enum(labels) => {
                labels.iter().any(|label| label == user).then(|| Parameter::Text(user.into()))?
            }
        })
    }
}

fn number<const N: usize>(bytes: [u8; N]) -> Parameter {
    Parameter::Number(bytes.into())
}

fn parameter_kind(of: &Type) -> Option<ParameterKind> {
    match (of.kind(), of) {
        (Kind::Domain(of), _) => parameter_kind(of),
        (Kind::Enum(labels), _) => Some(ParameterKind::Enum(labels.clone())),
        (_, &Type::INT2) => Some(ParameterKind::Int2),
        (_, &Type::INT4) => Some(ParameterKind::Int4),
        (_, &Type::INT8) => Some(ParameterKind::Int8),
        (_, &Type::UUID) => Some(ParameterKind::Uuid),
        (_, of) => is_text(of).then_some(ParameterKind::Text),
    }
}

/// Whether its values can be read as text, as they come.
fn is_text(of: &Type) -> bool {
    match (of.kind(), of) {
        (Kind::Domain(of), _) => is_text(of),
        (Kind::Enum(_), _) => true,
        (_, &Type::TEXT | &Type::VARCHAR | &Type::BPCHAR | &Type::NAME) => true,
        // Comes with an extension, hence without a number of its own.
        (Kind::Simple, of) => of.name() == "citext",
        _ => false,
    }
}

/// 32 hexadecimal digits, in any case of letters, with the usual dashes or none.
fn uuid(text: &str) -> Option<[u8; 16]> {
    let mut groups = [0; 5];
    let mut digits = 0;
    let mut count = 0;
    let mut value: u128 = 0;
    for byte in text.bytes() {
        if byte == b'-' {
            *groups.get_mut(count)? = digits;
            count += 1;
            continue;
        }
        digits += 1;
        value = value << 4 | u128::from(char::from(byte).to_digit(16)?);
        if digits > 32 {
            return None;
        }
    }
    let has_dashes_in_place = matches!((count, groups), (0, _) | (4, [8, 12, 16, 20, _]));
    (digits == 32 && has_dashes_in_place).then(|| value.to_be_bytes())
}

impl ToSql for Parameter {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, BoxError> {
        match self {
            Parameter::Null => return Ok(IsNull::Yes),
            Parameter::Number(bytes) => out.put_slice(bytes),
            Parameter::Text(text) => out.put_slice(text.as_bytes()),
            Parameter::Uuid(bytes) => out.put_slice(bytes),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        // Made for the type by its shape.
        true
    }

    to_sql_checked!();
}

/// A column that can be read as text.
#[derive(Debug)]
pub struct Plan<'r>(pub &'r str);

impl<'r> FromSql<'r> for Plan<'r> {
    fn from_sql(of: &Type, raw: &'r [u8]) -> Result<Self, BoxError> {
        let text = std::str::from_utf8(raw)?;
        // A column of a fixed width is filled up with blanks.
        let is_padded = *of == Type::BPCHAR;
        Ok(Plan(if is_padded { text.trim_end_matches(' ') } else { text }))
    }

    fn accepts(of: &Type) -> bool {
        is_text(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(of: Type) -> Shape {
        Shape::of_types(&[of], &[&Type::TEXT]).unwrap()
    }

    #[test]
    fn a_user_becomes_what_the_column_holds() {
        let user = |of, user: &str| shape(of).parameter(user);
        assert_eq!(user(Type::INT2, "-2"), Some(Parameter::Number([255, 254].into())));
        assert_eq!(user(Type::INT4, "258"), Some(Parameter::Number([0, 0, 1, 2].into())));
        let eight = Parameter::Number([0, 0, 0, 0, 0, 0, 0, 42].into());
        assert_eq!(user(Type::INT8, "42"), Some(eight));
        for no_number in ["", "anna", "4 2", "2147483648", "1e3", "٤"] {
            assert_eq!(user(Type::INT4, no_number), None, "{no_number}");
        }
        for of in [Type::TEXT, Type::VARCHAR, Type::BPCHAR, Type::NAME] {
            assert_eq!(user(of, "anna"), Some(Parameter::Text("anna".into())));
        }
    }

    #[test]
    fn uuids_are_read_with_dashes_or_without() {
        let bytes = [
            0x12, 0x3e, 0x45, 0x67, 0xe8, 0x9b, 0x12, 0xd3, 0xa4, 0x56, 0x42, 0x66, 0x14, 0x17,
            0x40, 0,
        ];
        assert_eq!(uuid("123e4567-e89b-12d3-a456-426614174000"), Some(bytes));
        assert_eq!(uuid("123E4567E89B12D3A456426614174000"), Some(bytes));
        for wrong in [
            "",
            "42",
            "123e4567-e89b-12d3-a456-42661417400",
            "123e4567-e89b-12d3-a456-4266141740000",
            "123e4567e-89b-12d3-a456-426614174000",
            "123e4567-e89b12d3-a456-426614174000",
            "{123e4567-e89b-12d3-a456-426614174000}",
            "123e4567-e89b-12d3-a456-42661417400g",
            "----------------------------------------",
        ] {
            assert_eq!(uuid(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_will_not_do_is_named() {
        let wrong = |parameters: &[Type], columns: &[&Type]| {
            Shape::of_types(parameters, columns).unwrap_err()
        };
        assert_eq!(wrong(&[], &[&Type::TEXT]), "it takes 0 parameters, expected $1 alone");
        assert_eq!(
            wrong(&[Type::NUMERIC], &[&Type::TEXT]),
            "$1 is of type numeric, expected a text, an integer or a uuid: cast it, $1::text"
        );
        assert_eq!(wrong(&[Type::INT4], &[]), "it gives 0 columns, expected one");
        assert_eq!(
            wrong(&[Type::INT4], &[&Type::TEXT, &Type::INT4]),
            "it gives 2 columns, expected one"
        );
        assert_eq!(
            wrong(&[Type::INT4], &[&Type::INT4]),
            "it gives a column of type int4, expected text: cast it, ::text"
        );
    }
}
