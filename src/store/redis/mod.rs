//! stub
use std::sync::Arc; use crate::policy::plan::Plan; use crate::limiter::time::Timestamp; use super::Checked;
#[derive(Debug)] pub struct RedisShared; #[derive(Debug)] pub struct RedisStore;
impl RedisStore { pub fn connect(_s:Arc<RedisShared>)->Self{RedisStore} pub async fn check(&self,_p:&Plan<'_>,_n:Timestamp)->Checked{Checked::FailedOpen} }
