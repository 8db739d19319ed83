use std::sync::Arc; use std::time::Duration; use tollgate::{clock::Clock,proxy::{gate::*,io::PhaseTimeouts,pool::PoolSettings,headers::*,resolve::Addresses},policy::compiled::*,limiter::quota::*,store::memory::MemoryStore,commands::serve};
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;
fn main(){ 
 let a:Vec<String>=std::env::args().collect(); let nz=|n|std::num::NonZeroU32::new(n);
 let k:u32=a.get(4).map(|s|s.parse().unwrap()).unwrap_or(1);
 let set=LimitSet{second:Some(Bucket{rate:nz(5*k).unwrap(),burst:nz(10*k).unwrap()}),minute:nz(100*k),hour:nz(1000*k)};
 let policy=Policy::new(PolicyParts{tiers:vec![Tier{name:"free".into(),limits:if k==0{LimitSet::default()}else{set},on_failure:None}],..Default::default()});
 let gate=Arc::new(Gate{settings:Settings{phases:PhaseTimeouts{header:Duration::from_secs(10),idle:Duration::from_secs(60)},body_timeout:Duration::from_secs(30),header_bytes_max:65536,body_bytes_max:0,drain_timeout:Duration::from_secs(30),connections_max:20000,pool:PoolSettings{connect_timeout:Duration::from_secs(2),idle_max:256,idle_timeout:Duration::from_secs(60),head_bytes_max:65536},response_timeout:Duration::from_secs(60),upstream_idle_timeout:Duration::from_secs(60),tunnel_idle_timeout:Duration::from_secs(3600),retries:1,host_override:None,fields:ResponseFields{x_ratelimit:true,reset:Reset::Epoch,expose_cors:true}},
 active:arc_swap::ArcSwap::from_pointee(Active{policy,metrics:Default::default()}),clock:Clock::System,metrics:Default::default(),memory:Arc::new(MemoryStore::new(1000)),redis:None,addresses:Addresses::new("127.0.0.1",a[2].parse().unwrap()),exposed:vec![],drain:Drain::default()});
 let ls=serve::bind_all(&[format!("127.0.0.1:{}",a[1]).parse().unwrap()],"--listen").unwrap();
 let d=serve::DataPath::start(&gate,ls,a[3].parse().unwrap(),|_|()).unwrap();
 tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async{ let mut s=tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap(); s.recv().await; gate.drain.begin(); d.ended().await; });
}
