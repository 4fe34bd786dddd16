use kube::CustomResourceExt;
fn main(){
 for c in [stillpoint_api::BackupPolicy::crd(), stillpoint_api::Backup::crd(), stillpoint_api::HookTemplate::crd(), stillpoint_api::ClusterHookTemplate::crd(), stillpoint_api::Restore::crd()] {
  println!("---\n{}", serde_yaml::to_string(&c).unwrap());
 }
}
