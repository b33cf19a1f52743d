//! What was asked: the path and query of a request, as the API server reads them.

use std::collections::BTreeMap;
use std::time::Instant;

use hyper::Method;
use hyper::header::{AUTHORIZATION, HeaderMap};

use crate::resource::Resource;

/// What a request wants, in the words of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// One object.
    Get,
    /// All objects, or a page of them.
    List,
    /// The changes.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
}

/// One request that the server got.
#[derive(Debug, Clone)]
pub struct Request {
    /// When it came in.
    pub at: Instant,
    /// The HTTP method.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The parameters of the query, decoded.
    pub query: BTreeMap<String, String>,
    /// What it wants; none if it is not about a resource that is served.
    pub verb: Option<Verb>,
    /// The namespace of the path, or nothing.
    pub namespace: String,
    /// The name of the object, or nothing.
    pub name: String,
    /// The token it came with.
    pub bearer: Option<String>,
    pub(crate) resource: Option<&'static Resource>,
    pub(crate) subresource: String,
}

impl Request {
    pub(crate) fn read(method: &Method, path: &str, query: &str, headers: &HeaderMap) -> Request {
        let query: BTreeMap<String, String> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let mut request = Request {
            at: Instant::now(),
            method: method.to_string(),
            path: path.to_owned(),
            query,
            verb: None,
            namespace: String::new(),
            name: String::new(),
            bearer: bearer.map(str::to_owned),
            resource: None,
            subresource: String::new(),
        };
        let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        let (group, version, rest) = match steps.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return request,
        };
        // A namespace is an object of its own and the first half of the paths of what is in it.
        let (namespace, rest) = match rest {
            ["namespaces", _, "status" | "finalize"] => ("", rest),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (*plural, "", ""),
            [plural, name] => (*plural, *name, ""),
            [plural, name, subresource] => (*plural, *name, *subresource),
            _ => return request,
        };
        let Some(resource) = Resource::served(group, version, plural) else { return request };
        if resource.namespaced == namespace.is_empty() && (!name.is_empty() || !resource.namespaced) {
            return request;
        }
        request.resource = Some(resource);
        request.namespace = namespace.to_owned();
        request.name = name.to_owned();
        request.subresource = subresource.to_owned();
        request.verb = match (method.as_str(), name.is_empty()) {
            ("GET", true) if request.flag("watch") == Some(true) => Some(Verb::Watch),
            ("GET", true) => Some(Verb::List),
            ("GET", false) => Some(Verb::Get),
            ("POST", true) => Some(Verb::Create),
            ("PUT", false) => Some(Verb::Update),
            ("PATCH", false) => Some(Verb::Patch),
            ("DELETE", false) => Some(Verb::Delete),
            _ => None,
        };
        request
    }

    /// Whether it is about this resource: `pods`, or with its group, `events.events.k8s.io`.
    pub fn is_of(&self, resource: &str) -> bool {
        self.resource.is_some_and(|known| match resource.split_once('.') {
            Some(_) => known.qualified() == resource,
            None => known.plural == resource,
        })
    }

    /// A parameter of the query; empty if it is missing.
    pub fn parameter(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.query.get(name).map(|value| matches!(value.as_str(), "true" | "1"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(method: &Method, path: &str, query: &str, expected: &str) {
        let request = Request::read(method, path, query, &HeaderMap::new());
        let plural = request.resource.map_or("-".to_owned(), Resource::qualified);
        let found =
            format!("{:?} {plural} {:?} {:?} {}", request.verb, request.namespace, request.name, request.subresource);
        assert_eq!(found.trim_end(), expected, "{method} {path}");
    }

    #[test]
    fn paths_are_read_as_the_api_server_reads_them() {
        let (get, post) = (&Method::GET, &Method::POST);
        check(get, "/api/v1/pods", "", r#"Some(List) pods "" """#);
        check(get, "/api/v1/pods", "watch=true", r#"Some(Watch) pods "" """#);
        check(get, "/api/v1/pods", "watch=0", r#"Some(List) pods "" """#);
        check(get, "/api/v1/namespaces/a/pods", "watch=1", r#"Some(Watch) pods "a" """#);
        check(get, "/api/v1/namespaces/a/pods/b", "", r#"Some(Get) pods "a" "b""#);
        check(&Method::PUT, "/api/v1/namespaces/a/pods/b/status", "", r#"Some(Update) pods "a" "b" status"#);
        check(get, "/api/v1/namespaces/a", "", r#"Some(Get) namespaces "" "a""#);
        check(&Method::PATCH, "/api/v1/namespaces/a/status", "", r#"Some(Patch) namespaces "" "a" status"#);
        check(&Method::DELETE, "/api/v1/nodes/n", "", r#"Some(Delete) nodes "" "n""#);
        check(post, "/apis/events.k8s.io/v1/namespaces/a/events", "", r#"Some(Create) events.events.k8s.io "a" """#);
        check(get, "/api/v1/pods/b", "", r#"None - "" """#);
        check(get, "/apis/apps/v1/deployments", "", r#"None - "" """#);
        check(get, "/version", "", r#"None - "" """#);
    }
}
