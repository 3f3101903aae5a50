//! Following what is being done to a machine: a stream of server-sent events.

use caddis_api::{Machine, MachineId, machine::Operation};
use futures::{StreamExt as _, stream::BoxStream};
use reqwest::Method;
use serde_json::Value;

use crate::{Client, ClientError, machines::machine_request};

/// One event of the stream.
#[derive(Debug, Clone, PartialEq)]
pub enum OperationUpdate {
    /// How far it is.
    Progress(Operation),
    /// Nothing is being done (any more).
    Idle,
}

impl Client {
    /// `GET …/operation`: the operation in progress, once now and again with every change. Ends
    /// when it is over.
    ///
    /// # Errors
    /// 404; also within the stream, when the connection breaks.
    pub async fn follow_operation(
        &self,
        app: &str,
        machine: &MachineId,
    ) -> Result<BoxStream<'static, Result<OperationUpdate, ClientError>>, ClientError> {
        let request = machine_request(Method::GET, app, machine, Some("operation")).timeout(None);
        let name = request.name();
        let response = self.send(&request).await?;
        let lines = self.lines(name, response);
        let updates = lines.filter_map(|line| async move {
            match line {
                // Each event is one `data:` line; comments (keep-alives), names and ids are passed
                // over.
                Ok(line) => {
                    line.strip_prefix("data:").and_then(|data| read_event(data.trim())).map(Ok)
                }
                Err(error) => Some(Err(error)),
            }
        });
        Ok(updates.boxed())
    }
}

/// An event holds an operation, or null, or an object with an `operation` of either kind. What is
/// none of these is passed over: a newer server may have more to say.
fn read_event(data: &str) -> Option<OperationUpdate> {
    let value: Value = serde_json::from_str(data).ok()?;
    let operation = match &value {
        Value::Object(fields) if fields.contains_key("step") => value,
        Value::Object(fields) => match fields.get("operation") {
            Some(operation) => operation.clone(),
            // A machine without operation is idle.
            None if serde_json::from_value::<Machine>(value.clone()).is_ok() => Value::Null,
            None => return None,
        },
        _ => value,
    };
    match operation {
        Value::Null => Some(OperationUpdate::Idle),
        operation => serde_json::from_value(operation).ok().map(OperationUpdate::Progress),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_in_every_form_and_others_passed_over() {
        let operation = concat!(
            r#"{"kind":"create","step":"pull","bytes_done":1,"bytes_total":2,"attempt":1,"#,
            r#""started_at":"2026-01-01T00:00:00.000Z","deadline":"2026-01-01T00:10:00.000Z"}"#,
        );
        for data in
            [operation.to_owned(), format!(r#"{{"operation":{operation},"state":"creating"}}"#)]
        {
            let Some(OperationUpdate::Progress(read)) = read_event(&data) else { panic!("{data}") };
            assert_eq!((read.step.as_str(), read.bytes_done, read.bytes_total), ("pull", 1, 2));
        }
        assert_eq!(read_event("null"), Some(OperationUpdate::Idle));
        assert_eq!(read_event(r#"{"operation":null}"#), Some(OperationUpdate::Idle));
        for other in ["", "{}", "x", r#"{"hello":1}"#, r#"{"step":1}"#] {
            assert_eq!(read_event(other), None, "{other}");
        }
    }
}
