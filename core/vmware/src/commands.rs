//! The commands of VMware's low port (`abi::calls::vmware::command`): who may use them.
//!
//! Only commands that an arm64 client uses, or whose answer it understands, are implemented. All others answer with
//! [`abi::calls::NO_COMMAND`] in W0, as an x86 port without a device does.

use abi::bundle::Group;
use abi::calls::vmware::command;

use crate::service::ExceptionLevel;

/// The least level that a command is for. What names physical pages is for kernels alone.
#[must_use]
pub const fn least_level(number: u16) -> ExceptionLevel {
    match number {
        command::DISPLAY_STATISTICS => ExceptionLevel::Kernel,
        _ => ExceptionLevel::User,
    }
}

/// The group of a command. GET_VERSION is in none: it is always answered.
#[must_use]
pub const fn group(number: u16) -> Option<Group> {
    match number {
        command::GET_VERSION => None,
        command::MESSAGE => Some(Group::Rpc),
        command::GET_TIME | command::GET_TIME_FULL | command::GET_TIME_FULL_WITH_LAG | command::STOP_CATCH_UP => {
            Some(Group::Time)
        }
        _ => Some(Group::Hardware),
    }
}
