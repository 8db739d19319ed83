//! The manifests under `deploy/kubernetes` are what a cluster takes, and fit what tollgate does.
//!
//! What `kubectl kustomize` makes of them is kept in `tests/vectors/kubernetes`, so that all of this
//! is held where there is no `kubectl`, too. `TOLLGATE_UPDATE=1` writes those files anew.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

#[path = "support/made.rs"]
mod made;
mod support;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{Backend, Start};

const DEPLOY: &str = "deploy/kubernetes";
/// What can be applied by itself and is for every cluster.
const OVERLAYS: [&str; 2] = ["gateway", "sidecar"];
/// What tollgate itself adds to `server.drain_timeout`.
const GRACE: u64 = 2;

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a file of YAML.
fn documents(text: &str) -> Vec<Value> {
    use serde::Deserialize as _;
    let all = serde_yaml::Deserializer::from_str(text).map(|it| Value::deserialize(it).unwrap());
    all.filter(|it| !it.is_null()).collect()
}

fn yaml(path: impl AsRef<Path>) -> Value {
    serde_yaml::from_str(&read(path)).unwrap()
}

fn vector(name: &str) -> PathBuf {
    Path::new("tests/vectors/kubernetes").join(name)
}

/// What is applied of one overlay.
fn objects(overlay: &str) -> Vec<Value> {
    documents(&read(vector(&format!("{overlay}.yaml"))))
}

/// The one object of a kind.
fn the(objects: &[Value], kind: &str) -> Value {
    let mut found = objects.iter().filter(|it| it["kind"] == kind);
    let object = found.next().unwrap_or_else(|| panic!("no {kind}")).clone();
    assert!(found.next().is_none(), "two of {kind}");
    object
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// The containers of a pod that run all the time.
fn containers(pod: &Value) -> Vec<&Value> {
    let (init, main) = (list(&pod["initContainers"]), list(&pod["containers"]));
    init.iter().filter(|it| it["restartPolicy"] == "Always").chain(main).collect()
}

fn pod(objects: &[Value]) -> Value {
    the(objects, "Deployment")["spec"]["template"]["spec"].clone()
}

fn gate(pod: &Value) -> Value {
    list(&pod["containers"]).iter().find(|it| it["name"] == "tollgate").unwrap().clone()
}

/// `tollgate.yaml` and `tiers.yaml`, as the pod sees them.
fn mounted(objects: &[Value]) -> BTreeMap<String, String> {
    let pod = pod(objects);
    let gate = gate(&pod);
    let mount = list(&gate["volumeMounts"]).iter().find(|it| it["mountPath"] == "/etc/tollgate");
    let name = &mount.unwrap()["name"];
    let volume = list(&pod["volumes"]).iter().find(|it| it["name"] == *name).unwrap();
    let mut files = BTreeMap::new();
    for source in list(&volume["projected"]["sources"]) {
        let name = &source["configMap"]["name"];
        let map =
            objects.iter().find(|it| it["kind"] == "ConfigMap" && it["metadata"]["name"] == *name);
        let map = map.unwrap_or_else(|| panic!("no ConfigMap {name}"));
        for (name, content) in map["data"].as_object().unwrap() {
            files.insert(name.clone(), text(content).to_owned());
        }
    }
    files
}

/// The files of the Secret, in a directory.
fn secrets() -> (tempfile::TempDir, Vec<String>) {
    let directory = tempfile::tempdir().unwrap();
    let secret = yaml(Path::new(DEPLOY).join("secret.example.yaml"));
    let mut names = Vec::new();
    for (name, value) in secret["stringData"].as_object().unwrap() {
        fs::write(directory.path().join(name), text(value)).unwrap();
        names.push(name.clone());
    }
    (directory, names)
}

fn seconds(duration: &Value) -> u64 {
    text(duration).parse::<humantime::Duration>().unwrap().as_secs()
}

// ------------------------------------------------------------------------- what is made of the files

/// All files that `kubectl kustomize` reads.
fn sources() -> String {
    let mut files = Vec::new();
    for directory in ["base", "gateway", "sidecar"] {
        let entries = fs::read_dir(Path::new(DEPLOY).join(directory)).unwrap();
        files.extend(entries.map(|it| it.unwrap().path()));
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.display().to_string());
        hash.update(read(&file));
    }
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

#[test]
fn the_manifests_render_to_what_is_checked_here() {
    let is_there = Command::new("kubectl").args(["kustomize", "--help"]).output().is_ok();
    let hash = format!("# Made by `kubectl kustomize` of files whose SHA-256 is {}\n", sources());
    for overlay in OVERLAYS {
        let kept = vector(&format!("{overlay}.yaml"));
        if is_there {
            let directory = format!("{DEPLOY}/{overlay}");
            let made = Command::new("kubectl").args(["kustomize", &directory]).output().unwrap();
            assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
            assert!(made.stderr.is_empty(), "{}", String::from_utf8_lossy(&made.stderr));
            let made = String::from_utf8(made.stdout).unwrap();
            if made::is_to_be_written() {
                fs::write(&kept, format!("{hash}{made}")).unwrap();
            }
            assert!(documents(&made) == objects(overlay), "{overlay}: TOLLGATE_UPDATE=1 anew");
        } else {
            println!("skipped: kubectl kustomize (no kubectl)");
        }
        let kept = read(kept);
        assert!(kept.starts_with(&hash), "{overlay}: TOLLGATE_UPDATE=1 where there is kubectl");
    }
}

/// The one rule that no `kubectl kustomize` needs: whatever is named is there, and is named.
#[test]
fn every_file_is_named_by_its_kustomization() {
    for directory in ["base", "gateway", "sidecar", "monitoring"] {
        let directory = Path::new(DEPLOY).join(directory);
        let kustomization = yaml(directory.join("kustomization.yaml"));
        let mut named = vec!["kustomization.yaml".to_owned()];
        let generated = list(&kustomization["configMapGenerator"]).iter();
        let files = generated.flat_map(|it| list(&it["files"]));
        let patches = list(&kustomization["patches"]).iter().map(|it| &it["path"]);
        let all = list(&kustomization["resources"]).iter().chain(files).chain(patches);
        for name in all.filter_map(Value::as_str) {
            assert!(directory.join(name).exists(), "{}: no {name}", directory.display());
            named.push(name.to_owned());
        }
        for file in fs::read_dir(&directory).unwrap() {
            let name = file.unwrap().file_name().into_string().unwrap();
            assert!(named.contains(&name), "{}: {name} is not used", directory.display());
        }
    }
}

/// The object of the Prometheus Operator holds the very rules of `deploy/prometheus`, their comments
/// included.
#[test]
fn the_operator_is_given_the_rules_of_prometheus() {
    let prometheus = Path::new("deploy/prometheus");
    let mut made = "\
# The rules of deploy/prometheus, made by `TOLLGATE_UPDATE=1 cargo test --test kubernetes`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: tollgate
  labels:
    app.kubernetes.io/name: tollgate
spec:
  groups:
"
    .to_owned();
    let mut rules = 0;
    for file in list(&yaml(prometheus.join("prometheus.yml"))["rule_files"]) {
        let file = read(prometheus.join(text(file)));
        let (_, groups) = file.split_once("\ngroups:\n").unwrap();
        for line in groups.lines() {
            let indent = if line.is_empty() { "" } else { "  " };
            writeln!(made, "{indent}{line}").unwrap();
        }
        let parsed: Value = serde_yaml::from_str(&file).unwrap();
        rules += list(&parsed["groups"]).iter().map(|it| list(&it["rules"]).len()).sum::<usize>();
    }
    let path = Path::new(DEPLOY).join("monitoring/prometheusrule.yaml");
    made::expect_file(&path, &made);
    let object = yaml(&path);
    let groups = list(&object["spec"]["groups"]).iter();
    assert_eq!(groups.map(|it| list(&it["rules"]).len()).sum::<usize>(), rules);
    assert!(rules > 40, "{rules}");
}

// ------------------------------------------------------------------------------- what a cluster takes

#[test]
fn every_object_fits_its_schema() {
    let schemas: Value = serde_json::from_str(&read(vector("schemas.json"))).unwrap();
    let example = [yaml(Path::new(DEPLOY).join("secret.example.yaml"))];
    let monitoring = fs::read_dir(Path::new(DEPLOY).join("monitoring")).unwrap();
    let monitoring = monitoring.map(|it| yaml(it.unwrap().path()));
    let monitoring = monitoring.filter(|it| it["kind"] != "Kustomization").collect::<Vec<_>>();
    assert!(!monitoring.is_empty());
    let all = OVERLAYS.iter().flat_map(|it| objects(it)).chain(example).chain(monitoring);
    let mut checked = 0;
    for object in all {
        let id = format!("{}/{}", text(&object["apiVersion"]), text(&object["kind"]));
        let name = schemas["kinds"][&id].as_str().unwrap_or_else(|| panic!("no schema of {id}"));
        let schema = json!({ "$ref": format!("#/$defs/{name}"), "$defs": schemas["$defs"] });
        let schema = jsonschema::draft202012::new(&schema).unwrap();
        let errors: Vec<_> =
            schema.iter_errors(&object).map(|it| format!("{}: {it}", it.instance_path())).collect();
        assert!(errors.is_empty(), "{id} {}: {errors:#?}", object["metadata"]["name"]);
        checked += 1;
    }
    assert!(checked > 15, "{checked}");
}

/// The profile `restricted` of the pod security standards, and a file system that cannot be written.
#[test]
fn pods_may_do_nothing_that_they_need_not() {
    for overlay in OVERLAYS {
        let pod = pod(&objects(overlay));
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{overlay}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["securityContext"]["runAsUser"], 65532);
        assert_eq!(pod["automountServiceAccountToken"], false);
        assert_eq!(pod["enableServiceLinks"], false);
        for shared in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
            assert!(pod[shared].is_null(), "{overlay}: {shared}");
        }
        for container in containers(&pod) {
            let may = &container["securityContext"];
            assert_eq!(may["allowPrivilegeEscalation"], false, "{}", container["name"]);
            assert!(may["privileged"].is_null() && may["runAsUser"].is_null(), "{may}");
            assert_eq!(may["readOnlyRootFilesystem"], true, "{}", container["name"]);
            assert_eq!(may["capabilities"], json!({ "drop": ["ALL"] }), "{}", container["name"]);
            let resources = &container["resources"];
            for (kind, what) in [("requests", "cpu"), ("requests", "memory"), ("limits", "memory")]
            {
                assert!(resources[kind][what].is_string(), "{kind}.{what}");
            }
            assert!(resources["limits"]["cpu"].is_null(), "a worker that is throttled hangs");
        }
        for volume in list(&pod["volumes"]) {
            assert!(volume["hostPath"].is_null(), "{volume}");
        }
        for mount in list(&gate(&pod)["volumeMounts"]) {
            assert_eq!(mount["readOnly"], true);
            assert!(mount["subPath"].is_null(), "what is mounted by subPath is never read again");
        }
    }
}

#[test]
fn what_selects_pods_finds_them() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let deployment = the(&objects, "Deployment");
        let labels = deployment["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
        let finds = |what: &str, selector: &Value| {
            let selector = selector.as_object().unwrap();
            let is_there = |(name, value): (&String, &Value)| labels.get(name) == Some(value);
            assert!(!selector.is_empty() && selector.iter().all(is_there), "{overlay}: {what}");
        };
        let selected = |kind| the(&objects, kind)["spec"]["selector"].clone();
        finds("Deployment", &deployment["spec"]["selector"]["matchLabels"]);
        finds("Service", &selected("Service"));
        finds("PodDisruptionBudget", &selected("PodDisruptionBudget")["matchLabels"]);
        let policy = the(&objects, "NetworkPolicy");
        finds("NetworkPolicy", &policy["spec"]["podSelector"]["matchLabels"]);
        let pod = deployment["spec"]["template"]["spec"].clone();
        for spread in list(&pod["topologySpreadConstraints"]) {
            finds("topologySpreadConstraints", &spread["labelSelector"]["matchLabels"]);
        }
        let monitor = yaml(Path::new(DEPLOY).join("monitoring/podmonitor.yaml"));
        finds("PodMonitor", &monitor["spec"]["selector"]["matchLabels"]);

        // And the ports that they name.
        let gate = gate(&pod);
        let ports: Vec<&str> = list(&gate["ports"]).iter().map(|it| text(&it["name"])).collect();
        let service = the(&objects, "Service");
        let reached = list(&service["spec"]["ports"]).iter().map(|it| &it["targetPort"]);
        let rules = list(&policy["spec"]["ingress"]).iter();
        let reached = reached.chain(rules.flat_map(|it| list(&it["ports"])).map(|it| &it["port"]));
        let endpoints = list(&monitor["spec"]["podMetricsEndpoints"]).iter();
        for port in reached.chain(endpoints.map(|it| &it["port"])) {
            assert!(ports.contains(&text(port)), "{overlay}: {port}");
        }
        assert_eq!(the(&objects, "ServiceAccount")["metadata"]["name"], pod["serviceAccountName"]);
        let namespace = &deployment["metadata"]["namespace"];
        assert!(
            objects
                .iter()
                .all(|it| it["kind"] == "Namespace" || it["metadata"]["namespace"] == *namespace)
        );
    }
    let objects = objects("gateway");
    let scaled = the(&objects, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"].clone();
    let deployment = the(&objects, "Deployment");
    assert_eq!(scaled["name"], deployment["metadata"]["name"]);
    assert!(deployment["spec"]["replicas"].is_null(), "the autoscaler says how many");
}

/// `/metrics` and `/health` are open to whoever reaches the admin port.
#[test]
fn the_admin_port_is_for_monitoring_alone() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let policy = the(&objects, "NetworkPolicy");
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress"]));
        let rules = list(&policy["spec"]["ingress"]).iter().filter(|rule| {
            rule["ports"].is_null() || list(&rule["ports"]).iter().any(|it| it["port"] == "admin")
        });
        let from: Vec<&Value> = rules.flat_map(|rule| list(&rule["from"])).collect();
        let monitoring = json!({ "namespaceSelector": { "matchLabels": {
            "kubernetes.io/metadata.name": "monitoring" } } });
        assert_eq!(from, [&monitoring], "{overlay}");
        let service = the(&objects, "Service");
        assert!(list(&service["spec"]["ports"]).iter().all(|it| it["targetPort"] == "http"));
    }
}

// ------------------------------------------------------------------------------- what tollgate does

/// The configuration in the ConfigMaps passes `tollgate check`, warnings included, with the Secret's
/// files where the configuration looks for them.
#[test]
fn the_configuration_is_valid() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let (secrets, names) = secrets();
        let pod = pod(&objects);
        let gate = gate(&pod);
        let mount = list(&gate["volumeMounts"]).iter().find(|it| it["name"] == "secrets").unwrap();
        let mounted_at = text(&mount["mountPath"]);
        let directory = tempfile::tempdir().unwrap();
        let mut used = Vec::new();
        for (name, content) in mounted(&objects) {
            used.extend(names.iter().filter(|it| content.contains(&format!("{mounted_at}/{it}"))));
            let here = content.replace(mounted_at, &secrets.path().display().to_string());
            fs::write(directory.path().join(name), here).unwrap();
        }
        assert_eq!(used.len(), names.len(), "{overlay}: a part of the Secret is of no use");
        let arguments: Vec<String> = list(&gate["args"])
            .iter()
            .map(|it| text(it).replace("/etc/tollgate", &directory.path().display().to_string()))
            .collect();
        assert_eq!((arguments[0].as_str(), arguments.len()), ("run", 3));
        let checked = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .arg("check")
            .args(&arguments[1..])
            .output()
            .unwrap();
        let said = String::from_utf8(checked.stdout).unwrap();
        assert!(checked.status.success(), "{overlay}: {said}");
        assert_eq!(said, "0 errors, 0 warnings, 2 of 2 tests passed\n", "{overlay}");
    }
}

#[test]
fn probes_and_ports_are_those_of_tollgate() {
    let backend = Backend::ok();
    let tollgate = Start::default().upstream(backend.address).run();
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let pod = pod(&objects);
        let gate = gate(&pod);
        let config: Value = serde_yaml::from_str(&mounted(&objects)["tollgate.yaml"]).unwrap();
        let port = |name: &str| {
            let found = list(&gate["ports"]).iter().find(|it| it["name"] == name);
            found.unwrap()["containerPort"].clone()
        };
        for (name, listens) in
            [("http", &config["server"]["listen"]), ("admin", &config["admin"]["listen"])]
        {
            // On every address: the kubelet and Prometheus come from outside.
            assert_eq!(text(listens), format!("0.0.0.0:{}", port(name)), "{overlay}");
        }
        for (probe, path) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            let asked = &gate[probe]["httpGet"];
            assert_eq!(*asked, json!({ "path": path, "port": "admin" }), "{overlay}: {probe}");
            assert_eq!(tollgate.admin(path).status, 200, "{path}");
        }
    }
}

/// From the end of a pod's service to the end of its processes there is time for all that happens.
#[test]
fn a_pod_has_time_to_drain() {
    for overlay in OVERLAYS {
        let objects = objects(overlay);
        let pod = pod(&objects);
        let gate = gate(&pod);
        let config: Value = serde_yaml::from_str(&mounted(&objects)["tollgate.yaml"]).unwrap();
        let pre_stop = gate["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap();
        let drain = seconds(&config["server"]["drain_timeout"]);
        let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
        // An app in the same pod is told to end when tollgate has.
        let app = if list(&pod["initContainers"]).is_empty() { 0 } else { 10 };
        assert!(pre_stop >= 5, "{overlay}");
        assert!(grace > pre_stop + drain + GRACE + app, "{overlay}: {grace} s");
        assert!(Duration::from_secs(grace) <= Duration::from_secs(60), "{overlay}");
    }
}

/// The kubelet ends `initContainers` after `containers`: the app has to be among the former.
#[test]
fn an_app_outlives_the_tollgate_in_its_pod() {
    let objects = objects("sidecar");
    let pod = pod(&objects);
    let names = |of: &Value| -> Vec<String> {
        list(of).iter().map(|it| text(&it["name"]).to_owned()).collect()
    };
    assert_eq!(names(&pod["initContainers"]), ["app"]);
    assert_eq!(names(&pod["containers"]), ["tollgate"]);
    let app = &pod["initContainers"][0];
    assert_eq!(app["restartPolicy"], "Always");
    assert!(app["startupProbe"].is_null(), "it would be asked before there is a tollgate");

    // It is where tollgate looks for it, on loopback, and asked through tollgate.
    let variable = |name: &str| {
        let found = list(&app["env"]).iter().find(|it| it["name"] == name);
        text(&found.unwrap()["value"]).to_owned()
    };
    let files = mounted(&objects);
    let config: Value = serde_yaml::from_str(&files["tollgate.yaml"]).unwrap();
    let address = format!("http://{}:{}", variable("HOST"), variable("PORT"));
    assert_eq!(config["upstream"]["url"], address.as_str());
    let asked = &app["readinessProbe"]["httpGet"];
    assert_eq!(asked["port"], list(&gate(&pod)["ports"])[0]["containerPort"]);
    let tiers: Value = serde_yaml::from_str(&files["tiers.yaml"]).unwrap();
    let rule = list(&tiers["endpoints"]).iter().find(|it| it["path"] == asked["path"]);
    assert_eq!(rule.unwrap()["exempt"], true, "a probe must not meet a limit");
}

/// A change of `tollgate.yaml` takes a restart, one of `tiers.yaml` none.
#[test]
fn a_change_of_the_policy_restarts_nothing() {
    for overlay in OVERLAYS {
        let maps: Vec<Value> =
            objects(overlay).into_iter().filter(|it| it["kind"] == "ConfigMap").collect();
        assert_eq!(maps.len(), 2);
        for map in maps {
            let name = text(&map["metadata"]["name"]);
            let files: Vec<&String> = map["data"].as_object().unwrap().keys().collect();
            match name.strip_prefix("tollgate-config-") {
                Some(hash) => assert!(hash.len() == 10 && files == ["tollgate.yaml"], "{name}"),
                None => {
                    assert_eq!((name, files), ("tollgate-tiers", vec![&"tiers.yaml".to_owned()]))
                }
            }
        }
    }
}
